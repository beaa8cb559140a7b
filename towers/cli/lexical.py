"""The lexical score on the command line: its weight and the fields it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from towers.item_text import ItemTemplate
from training.catalog import Catalog

if TYPE_CHECKING:
    from training.lexical_weight import LexicalScorer
    from training.run_folder import RunFolder

Lexical = str | float | None


class _Weight(click.ParamType):
    name = "auto|off|WEIGHT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Lexical:
        if value in ("auto", "off"):
            return value
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= 1:
            self.fail(f"{value!r} is not auto, off or a number from 0 to 1", param, ctx)
        return weight


def lexical_option(default: str) -> Callable[..., Any]:
    """The option --lexical; `default` says in the help what holds without it."""
    return click.option(
        "--lexical",
        type=_Weight(),
        help=f"Weight of BM25 in the final score, 0 to 1. {default}",
    )


def lexical_weight(setting: Lexical, run: RunFolder) -> float:
    """The weight that a setting means for a run: its own unless told otherwise.

    `auto` is the run's own where training chose it. A run that was given a weight has chosen none,
    and `auto` is what training takes without any shot.
    """
    from training.lexical_weight import PRIOR_WEIGHT

    if setting is None or (setting == "auto" and run.config.lexical == "auto"):
        return run.lexical_weight
    if isinstance(setting, str):
        return {"auto": PRIOR_WEIGHT, "off": 0.0}[setting]
    return setting


def lexical_scorer(template: ItemTemplate, catalog: Catalog) -> LexicalScorer:
    """The lexical score as an export computes it, for training to weigh."""
    import tensorflow as tf

    from serving.lexical import LexicalIndex, normalised

    index = LexicalIndex.build(lexical_fields(template, catalog))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def score(queries: tf.Tensor) -> tf.Tensor:
        return normalised(index.scores(queries))

    return lambda queries: score(tf.constant(list(queries), tf.string)).numpy()


def lexical_fields(template: ItemTemplate, catalog: Catalog) -> dict[str, list[str]]:
    """The texts that the lexical score reads: the columns of the item text, field by field."""
    return {name: [text or "" for text in catalog.column(name)] for name in template.columns}


def hybrid_top_k(
    queries: list[str],
    embeddings: np.ndarray,
    items: np.ndarray,
    fields: dict[str, list[str]],
    weight: float,
    k: int,
    progress: Callable[[int, int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks all items for all queries by the fused score, as a served export does.

    Args:
        queries: texts, ``N`` of them.
        embeddings: float32 ``[N, d]``, theirs.
        items: float32 ``[items, d]``.
        fields: see `lexical_fields`.
        weight: of the lexical score.
        k: results a query.
        progress: told about the progress.

    Returns:
        Scores float32 and rows int64, ``[N, min(k, items)]``.
    """
    import tensorflow as tf

    from serving.lexical import LexicalIndex, fused_top_k
    from training.query_parts import query_parts

    lexical = LexicalIndex.build(fields)
    matrix = tf.constant(items)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None, items.shape[1]], tf.float32),
        ]
    )
    def search(texts: tf.Tensor, vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return fused_top_k(
            texts,
            vectors,
            dense_scores=lambda part: tf.matmul(part, matrix, transpose_b=True),
            lexical_scores=lexical.scores,
            item_count=len(items),
            weight=weight,
            k=k,
        )

    found = []
    for part in query_parts(len(queries)):
        found.append(search(tf.constant(queries[part]), tf.constant(embeddings[part])))
        progress(part.stop, len(queries))
    scores = np.concatenate([scores.numpy() for scores, _ in found])
    return scores, np.concatenate([rows.numpy() for _, rows in found]).astype(np.int64)
