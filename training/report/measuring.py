"""One cell: shots drawn, a system adapted to them, and all test queries asked."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import sparse

from towers.packages import package_versions
from towers.retriever import Retriever
from training.lexical_weight import (
    PRIOR_WEIGHT,
    LexicalScorer,
    choose_lexical_weight,
    fused,
)
from training.query_parts import query_parts
from training.report.cells import TITLES, Cell, Measurement, Ranking, View
from training.report.memory import PeakMemory
from training.report.plan import BM25, PEER, Task
from training.report.sentence_transformers import FineTuned, versions
from training.run_folder import RunFolder
from training.search import top_k
from training.shots import draw_shots
from training.stages import Stages, stage
from training.train import LexicalIndexer, build_retriever, train


class Measurer:
    """Measures cells of one task; what several cells need is computed once.

    Args:
        task: data and settings.
        lexical: makes the lexical score.
        progress: told about the progress.
    """

    def __init__(self, task: Task, lexical: LexicalIndexer, progress: Stages | None = None) -> None:
        self.task = task
        self._lexical = lexical
        self._progress = progress or (lambda stage, done, total: None)

    def measure(self, cell: Cell, work: Path) -> Measurement:
        """Measures a cell.

        Args:
            cell: system, shots and seed.
            work: folder for the training, gone afterwards; one that was interrupted is taken up.

        Raises:
            InputError: the shots cannot be drawn, or training refuses or diverges.
        """
        if cell.system == BM25:
            return self._measurement(cell, {"lexical": self._ranking(*self._by_words())})
        if not cell.shots:
            vectors = self._zero_shot.encode_queries(self.task.test.queries), self._zero_shot_items
            return self._measured(cell, *vectors, weight=self._weight_without_shots)
        if cell.system == PEER:
            return self._peer(cell)
        return self._adapted(cell, work)

    def _adapted(self, cell: Cell, work: Path) -> Measurement:
        """Trains as `towers train` does."""
        config, run = self.task.config_of(cell), RunFolder(work)
        whole, start = not work.exists(), time.perf_counter()
        with PeakMemory() as memory:
            if run.is_finished:  # killed between the training and its evaluation
                metrics = json.loads((work / "metrics.json").read_text("utf-8"))
            else:
                metrics = train(
                    config,
                    self.task.catalog,
                    self.task.train,
                    work,
                    lexical=lambda template, catalog: self._scorer,
                    progress=self._progress,
                )
        seconds = time.perf_counter() - start
        retriever = run.load_retriever()
        queries = retriever.encode_queries(self.task.test.queries)
        measurement = self._measured(
            cell,
            queries,
            self._items(retriever),
            weight=None if config.lexical == "off" else run.lexical_weight,
            trained_parameters=(metrics["fit"] or {}).get("trained_parameters", 0),
            seconds=seconds if whole else None,
            peak_memory=memory.bytes if whole else None,
            training=metrics,
        )
        shutil.rmtree(work)
        return measurement

    def _peer(self, cell: Cell) -> Measurement:
        task, config = self.task, self.task.config
        pairs = draw_shots(task.train, cell.shots, seed=cell.seed, min_grade=config.min_grade)
        self._progress(f"Fine-tuning {PEER}", 0, 1)
        start = time.perf_counter()
        with PeakMemory() as memory:
            model = FineTuned(config)
            model.fit(pairs, task.item_texts, cell.seed)
        seconds = time.perf_counter() - start
        self._progress(f"Fine-tuning {PEER}", 1, 1)
        items = model.encode_items(task.item_texts, stage(self._progress, "Encoding items"))
        weight, training = self._weight_without_shots, {}
        if config.lexical == "auto":  # the words count as they do for a method of ours
            before: Any = _KnownItems(self._zero_shot, task.item_texts, self._zero_shot_items)
            after: Any = _KnownItems(model, task.item_texts, items)
            choice = choose_lexical_weight(
                before, pairs, task.item_texts, self._scorer, adapted=after, seed=cell.seed
            )
            weight, training = choice.weight, {"lexical": choice.as_dict()}
        return self._measured(
            cell,
            model.encode_queries(task.test.queries),
            items,
            weight=weight,
            trained_parameters=model.parameters,
            seconds=seconds,
            peak_memory=memory.bytes,
            training=training,
            packages=package_versions() | versions(),
        )

    # What all of them do

    def _measured(
        self,
        cell: Cell,
        queries: np.ndarray,
        items: np.ndarray,
        *,
        weight: float | None,
        **facts: Any,
    ) -> Measurement:
        """Ranks by vectors ``[Q, d]``, ``[items, d]``, and by words too if they have a weight."""
        scores, rows = top_k(queries, items, self.task.depth)
        views: dict[View, Ranking] = {"dense": self._ranking(scores, rows)}
        if weight is not None:
            views["hybrid"] = self._ranking(*self._by_both(queries, items, weight))
        return self._measurement(cell, views, lexical_weight=weight, **facts)

    def _by_both(
        self, queries: np.ndarray, items: np.ndarray, weight: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows ``[Q, depth]`` as of a served export."""
        found = []
        for part in query_parts(len(queries)):
            cosine = tf.matmul(queries[part], items, transpose_b=True).numpy()
            words = self._words[part].toarray()
            found.append(tf.math.top_k(fused(cosine, words, weight), self.task.depth))
        rows = np.concatenate([part.indices.numpy() for part in found]).astype(np.int64)
        return np.concatenate([part.values.numpy() for part in found]), rows

    def _by_words(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows ``[Q, depth]`` by the lexical score alone."""
        nowhere = np.zeros((len(self.task.test.queries), 1), np.float32)
        return self._by_both(nowhere, np.zeros((len(self.task.catalog), 1), np.float32), 1.0)

    def _ranking(self, scores: np.ndarray, rows: np.ndarray) -> Ranking:
        values = self.task.evaluate(rows, scores)
        return Ranking(
            values=[None if np.isnan(value) else value for value in values.tolist()],
            first=self.task.catalog.item_ids[rows[:, :TITLES]].tolist(),
        )

    def _measurement(self, cell: Cell, views: Mapping[View, Ranking], **facts: Any) -> Measurement:
        return Measurement(
            views=dict(views),
            identity=self.task.identity(cell),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            **{"packages": package_versions()} | facts,
        )

    # What is computed once

    @cached_property
    def _zero_shot(self) -> Retriever:
        return build_retriever(self.task.config_of(Cell("zero-shot")), self.task.template)

    @cached_property
    def _zero_shot_items(self) -> np.ndarray:
        return self._encoded(self._zero_shot)

    def _items(self, retriever: Retriever) -> np.ndarray:
        """Item vectors ``[items, d]``; the zero-shot ones where the item tower is as it was."""
        if retriever.fingerprint() == self._zero_shot.fingerprint():
            return self._zero_shot_items
        return self._encoded(retriever)

    def _encoded(self, retriever: Retriever) -> np.ndarray:
        return retriever.encode_items(
            self.task.item_texts,
            dtype=self.task.dtype,
            progress=stage(self._progress, "Encoding items"),
        )

    @cached_property
    def _scorer(self) -> LexicalScorer:
        return self._lexical(self.task.template, self.task.catalog)

    @cached_property
    def _words(self) -> sparse.csr_matrix:
        """The lexical score of every item for every test query, float32 ``[Q, items]``.

        Most items share no word with a query.
        """
        queries, parts = self.task.test.queries, []
        for part in query_parts(len(queries)):
            parts.append(sparse.csr_matrix(self._scorer(queries[part])))
            self._progress("Scoring words", part.stop, len(queries))
        return sparse.vstack(parts, format="csr")

    @property
    def _weight_without_shots(self) -> float | None:
        setting = self.task.config.lexical
        if isinstance(setting, str):
            return {"auto": PRIOR_WEIGHT, "off": None}[setting]
        return setting


class _KnownItems:
    """A retriever that looks its item vectors up.

    Args:
        retriever: encodes queries.
        texts: the item texts.
        vectors: float32 ``[items, d]``, theirs.
    """

    def __init__(
        self, retriever: Retriever | FineTuned, texts: Sequence[str], vectors: np.ndarray
    ) -> None:
        self.retriever, self.vectors = retriever, vectors
        self.rows = {text: row for row, text in enumerate(texts)}

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes."""
        return self.retriever.encode_queries(texts)

    def encode_items(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """Looks up."""
        return self.vectors[[self.rows[text] for text in texts]]
