"""Masked-language-model pretraining of an encoder on a shop's own texts."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from towers.checkpoint import load_backbone
from towers.encoding import Progress, token_sequences
from towers.errors import InputError
from towers.packages import package_versions
from towers.tokenizer import Tokenizer
from training.atomic_file import atomic_file
from training.config import FitConfig
from training.optimizer import adamw
from training.pretrain_batches import MaskedBatches
from training.pretrain_config import PretrainConfig
from training.pretrain_model import MaskedLanguageModel, masked_token_loss

_RECORD = "pretraining.json"
_CHECKPOINTS = "checkpoints"
_PARTIAL = "partial"
_HELD_OUT_SHARE = 0.05
_MOST_HELD_OUT = 512


def pretrain(
    texts: Sequence[str],
    config: PretrainConfig,
    output: Path,
    *,
    data: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains an encoder to guess masked words of texts, and writes it as a checkpoint folder.

    A twentieth of the texts, 512 at most, is kept back to measure on. A pretraining that was killed
    goes on after its last checkpoint when called again with the same arguments.

    Args:
        texts: any number of them; repetitions count once.
        config: the recipe.
        output: the folder, which can be named as an encoder afterwards.
        data: where the texts are from, for the record.
        progress: told (steps done, steps in all).

    Returns:
        What ``pretraining.json`` in the folder holds: settings, data, package versions, mean losses
        between checkpoints, and loss and accuracy on the texts kept back, when the encoder's own
        training began and at the end.

    Raises:
        InputError: there are too few texts, the encoder cannot be loaded or has fewer positions
            than `max_length`, the folder is taken, or training diverged.
    """
    texts = sorted(set(texts) - {""})
    if len(texts) < 2:
        raise InputError(f"pretraining needs two different texts or more; there are {len(texts)}")
    folder = _opened(output, config, texts)
    keras.utils.set_random_seed(config.seed)
    tokenizer = Tokenizer.from_preset(config.preset)
    backbone = load_backbone(config.preset)
    positions = int(backbone.max_sequence_length)
    if config.max_length > positions:
        raise InputError(
            f"max_length {config.max_length} is over the encoder's {positions} positions"
        )
    start = time.perf_counter()
    order = np.random.default_rng(config.seed).permutation(len(texts))
    sequences = token_sequences(tokenizer, [texts[row] for row in order], config.max_length)
    kept = min(_MOST_HELD_OUT, max(1, round(_HELD_OUT_SHARE * len(texts))))
    held_out, train = (
        MaskedBatches(
            part,
            tokenizer,
            max_length=config.max_length,
            batch_size=config.batch_size,
            mask_rate=config.mask_rate,
            seed=config.seed,
        )
        for part in (sequences[:kept], sequences[kept:])
    )
    trainer = _Trainer(config, MaskedLanguageModel(backbone), train, held_out, folder)
    trainer.run(progress)
    if not all(np.isfinite(weight).all() for weight in backbone.get_weights()):
        raise InputError(
            f"pretraining diverged with learning rate {config.learning_rate:g}: choose a lower one"
        )
    record = {
        "settings": config.model_dump(),
        "data": data or {},
        "texts": len(texts),
        "held_out_texts": kept,
        "held_out": trainer.state.held_out,
        "losses": trainer.state.losses,
        "seconds": time.perf_counter() - start,
        "packages": package_versions(),
    }
    _finish(output, backbone, tokenizer, record)
    return record


@dataclass
class _State:
    """How far a pretraining has come.

    Attributes:
        step: steps done.
        losses: mean training loss of each stretch between checkpoints.
        held_out: ``step``, ``loss`` and ``accuracy`` on the texts kept back.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)


class _Trainer:
    """Keras's `fit`, first for the head alone, then for all weights, from checkpoint to checkpoint.

    Args:
        config: the recipe.
        model: the model; its backbone is trained.
        batches: texts to train on.
        held_out: texts to measure on.
        folder: for checkpoints.
    """

    def __init__(
        self,
        config: PretrainConfig,
        model: MaskedLanguageModel,
        batches: MaskedBatches,
        held_out: MaskedBatches,
        folder: Path,
    ) -> None:
        self.config, self.model, self.folder = config, model, folder
        self.batches, self.held_out = batches, held_out
        self.state = _State()

    def run(self, progress: Progress | None) -> None:
        """Trains from the last checkpoint, or the beginning, to the end."""
        self._resume()
        for last in self._stops():
            first = self.state.step
            history = self.model.fit(
                self.batches.dataset(first, last),
                shuffle=False,  # the batches come shuffled
                verbose=0,
                callbacks=[_Steps(progress, first, self.config.steps)] if progress else None,
            )
            self.state.losses.append(float(history.history["loss"][0]))
            self._arrive(last)
            self._save()

    def _stops(self) -> Iterator[int]:
        """Steps at which training pauses: checkpoints, the end of the head's steps, the end."""
        config = self.config
        stops = {config.head_steps, config.steps}
        stops |= set(range(0, config.steps, config.checkpoint_steps))
        return iter(sorted(stop for stop in stops if stop > self.state.step))

    def _arrive(self, step: int) -> None:
        """Notes a step; measures and compiles where a phase begins or ends."""
        self.state.step = step
        if step in (self.config.head_steps, self.config.steps):
            dataset = self.held_out.dataset(0, self.held_out.per_epoch)
            found = self.model.evaluate(dataset, return_dict=True, verbose=0)
            self.state.held_out.append({"step": step} | {k: float(v) for k, v in found.items()})
        if step == self.config.head_steps:
            self._compile(step)

    def _compile(self, step: int) -> None:
        """Prepares the phase that a step is in."""
        config = self.config
        head = step < config.head_steps
        steps = config.head_steps if head else config.steps - config.head_steps
        self.model.train_backbone(not head)
        recipe = FitConfig(
            learning_rate=config.head_learning_rate if head else config.learning_rate,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
        self.model.compile(
            optimizer=adamw(recipe, max(steps, 1)),
            loss=masked_token_loss(),
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            jit_compile=False,  # as in training/loop.py
        )
        # Before its state is saved or loaded.
        self.model.optimizer.build(self.model.trainable_variables)

    def _resume(self) -> None:
        path = self.folder / "state.json"
        record = json.loads(path.read_text("utf-8"))
        if "step" not in record:
            self._compile(0)
            if not self.config.head_steps:
                self._arrive(0)
            return
        self.state = _State(record["step"], record["losses"], record["held_out"])
        self._compile(self.state.step)
        self.model.load_weights(self._weights(self.state.step))
        for variable, value in zip(self._hidden(), record["hidden"], strict=True):
            variable.assign(np.array(value, variable.dtype))

    def _save(self) -> None:
        step = self.state.step
        self.model.save_weights(self._weights(step))  # the optimizer's state included
        path = self.folder / "state.json"
        hidden = [keras.ops.convert_to_numpy(state).tolist() for state in self._hidden()]
        record = json.loads(path.read_text("utf-8")) | vars(self.state) | {"hidden": hidden}
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(record), "utf-8")
        for path in self.folder.glob("step-*.weights.h5"):
            if path != self._weights(step):
                path.unlink()

    def _weights(self, step: int) -> Path:
        return self.folder / f"step-{step}.weights.h5"

    def _hidden(self) -> list[Any]:
        """States of random generators, which are no weights."""
        weights = {id(weight) for weight in self.model.weights}
        metrics = {id(variable) for variable in self.model.metrics_variables}
        return [v for v in self.model.variables if id(v) not in weights | metrics]


class _Steps(keras.callbacks.Callback):
    """Passes the count of steps on."""

    def __init__(self, progress: Progress, first: int, total: int) -> None:
        super().__init__()
        self.progress, self.first, self.total = progress, first, total

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports."""
        self.progress(self.first + batch + 1, self.total)


def _opened(output: Path, config: PretrainConfig, texts: Sequence[str]) -> Path:
    """The folder of checkpoints of a new pretraining, or of an interrupted one of the same inputs.

    Raises:
        InputError: the folder holds something else.
    """
    folder = output / _CHECKPOINTS
    digest = hashlib.sha256(config.model_dump_json().encode())
    for text in texts:
        digest.update(b"\0" + text.encode())
    identity = digest.hexdigest()
    path = folder / "state.json"
    if (output / "config.json").is_file():
        raise InputError(f"{output} holds an encoder already: name another --output, or remove it")
    if path.is_file():
        if json.loads(path.read_text("utf-8"))["id"] != identity:
            raise InputError(
                f"{output} holds an unfinished pretraining of other texts or settings: name "
                "another --output, or remove it"
            )
        return folder
    if output.exists() and (not output.is_dir() or any(output.glob("[!.]*"))):
        raise InputError(f"{output} exists and is no pretraining: name another --output")
    with atomic_file(path) as partial:
        partial.write_text(json.dumps({"id": identity}), "utf-8")
    return folder


def _finish(
    output: Path, backbone: keras.Model, tokenizer: Tokenizer, record: dict[str, Any]
) -> None:
    """Writes the encoder; a folder that has ``config.json`` is whole."""
    partial = output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    backbone.save_to_preset(str(partial))
    tokenizer.save(partial)
    (partial / _RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(output / path.name)
    partial.rmdir()
    shutil.rmtree(output / _CHECKPOINTS)
