"""The peer: sentence-transformers, fine-tuned with its usual recipe (extra `bench`)."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from towers.checkpoint import resolve_preset
from towers.encoding import Progress
from training.config import TrainConfig
from training.interactions import Interactions

_PACKAGES = ("sentence_transformers", "datasets", "accelerate")
_TEXTS_AT_A_TIME = 1024
_EPOCHS = 5
_BATCH = 32
_WARM_UP = 0.1  # of the steps


def why_not(config: TrainConfig) -> str | None:
    """What keeps the peer from being measured, in words; None where nothing does."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        return (
            f"{missing[0].replace('_', '-')} is not installed: pip install 'fewshot-towers[bench]'"
        )
    preset = config.encoder.preset
    folder = Path(resolve_preset(preset))
    if folder.is_dir() and not (folder / "model.safetensors").is_file():
        return f"the encoder {preset} is no checkpoint that it reads (no model.safetensors)"
    return None


def versions() -> dict[str, str]:
    """Of the packages that the peer's results depend on."""
    return {name: version(name) for name in ("sentence-transformers", "torch", "transformers")}


def warm_up_steps(pairs: int) -> int:
    """Steps in which the rate rises: a tenth of all, by the number of pairs.

    A number that every version takes for the same: below 1 it is a share since transformers 5, and
    was a fraction of the first step before. Steps are counted as the trainer's schedule counts
    them, on one device, with the last batch of an epoch smaller than the others.
    """
    return round(_WARM_UP * _EPOCHS * -(-pairs // _BATCH))


class FineTuned:
    """A sentence-transformers model with the settings of the towers' texts.

    Args:
        config: names the encoder and the lengths.
    """

    def __init__(self, config: TrainConfig) -> None:
        import datasets
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        datasets.disable_progress_bars()  # those of the report are enough
        logging.disable_progress_bar()
        self.encoder = config.encoder
        preset = resolve_preset(config.encoder.preset).removeprefix("hf://")
        self.model: Any = SentenceTransformer(preset)

    @property
    def parameters(self) -> int:
        """Number of weights, all of which are trained."""
        return sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)

    def fit(self, pairs: Interactions, item_texts: Sequence[str], seed: int) -> None:
        """Fine-tunes: symmetric in-batch softmax, 5 epochs, batch 32, rate 2e-5, warm-up .1.

        Args:
            pairs: positive pairs.
            item_texts: text of every item.
            seed: decides order and dropout.
        """
        from datasets import Dataset
        from sentence_transformers import (
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.losses import MultipleNegativesSymmetricRankingLoss
        from sentence_transformers.training_args import BatchSamplers
        from transformers import PrinterCallback

        self.model.max_seq_length = self.encoder.item_max_length
        prefix = self.encoder.query_prefix
        columns = {
            "anchor": [prefix + pairs.queries[row] for row in pairs.query_row.tolist()],
            "positive": [item_texts[row] for row in pairs.item_row.tolist()],
        }
        with tempfile.TemporaryDirectory() as folder:
            trainer = SentenceTransformerTrainer(
                self.model,
                SentenceTransformerTrainingArguments(
                    folder,
                    num_train_epochs=_EPOCHS,
                    per_device_train_batch_size=_BATCH,
                    learning_rate=2e-5,
                    warmup_steps=warm_up_steps(len(pairs)),
                    batch_sampler=BatchSamplers.NO_DUPLICATES,
                    seed=seed,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,  # warns where there is no GPU
                ),
                Dataset.from_dict(columns),
                loss=MultipleNegativesSymmetricRankingLoss(self.model),
            )
            trainer.remove_callback(PrinterCallback)  # stdout is not its own
            trainer.train()

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 ``[len(texts), d]``."""
        self.model.max_seq_length = self.encoder.query_max_length
        return self._encode([self.encoder.query_prefix + text for text in texts], None)

    def encode_items(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Unit vectors, float32 ``[len(texts), d]``."""
        self.model.max_seq_length = self.encoder.item_max_length
        return self._encode(texts, progress)

    def _encode(self, texts: Sequence[str], progress: Progress | None) -> np.ndarray:
        # Longest first: what is encoded together is of one length, and hardly padded.
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        found = []
        for start in range(0, len(order), _TEXTS_AT_A_TIME):
            part = [texts[row] for row in order[start : start + _TEXTS_AT_A_TIME]]
            found.append(
                self.model.encode(
                    part, batch_size=64, normalize_embeddings=True, show_progress_bar=False
                )
            )
            if progress is not None:
                progress(start + len(part), len(order))
        vectors = np.concatenate(found)
        return vectors[np.argsort(order)]
