"""Few-shot adaptation: optimizer, choice of weights, and going on after a kill."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from towers.errors import InputError
from towers.retriever import Retriever
from training.catalog import Catalog
from training.config import FitConfig, TrainConfig
from training.fit import FitResult, adapt
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.optimizer import adamw
from training.train import train

Make = Callable[..., Retriever]

# Queries that are no titles: 24 of them, each with one or two items.
WORDS = ["boil", "water", "fast", "slow", "coffee", "hot", "red", "steel", "hose", "cat", "torch"]


def write_shop(folder: Path, catalog: dict[str, list[str]], queries: list[str]) -> Interactions:
    lines = ["item_id,title"]
    lines += [f'{i},"{t}"' for i, t in zip(catalog["item_id"], catalog["title"], strict=True)]
    (folder / "catalog.csv").write_text("\n".join(lines), "utf-8")
    ids = catalog["item_id"]
    lines = ["query,item_id"]
    for n, query in enumerate(queries):
        lines.append(f"{query},{ids[n % 8]}")
        if n % 3 == 0:
            lines.append(f"{query},{ids[(n + 3) % 8]}")
    (folder / "interactions.csv").write_text("\n".join(lines), "utf-8")
    return Interactions.read(folder / "interactions.csv", Catalog.read(folder / "catalog.csv"))


@pytest.fixture
def pairs(tmp_path: Path, tiny_catalog: dict[str, list[str]]) -> Interactions:
    rng = np.random.default_rng(0)
    queries = [" ".join(rng.choice(WORDS, 3, replace=False)) + f" {n}" for n in range(24)]
    return write_shop(tmp_path, tiny_catalog, queries)


RECIPE = FitConfig(
    epochs=3,
    min_steps=1,
    batch_size=8,
    learning_rate=1e-3,
    held_out=0.25,
    min_held_out=4,
    patience=3,
)


def weights_of(retriever: Retriever) -> list[np.ndarray]:
    return retriever.model.get_weights()


def assert_equal_weights(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


class Recorder(keras.callbacks.Callback):
    """Keeps the weights after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[list[np.ndarray]] = []
        self.logs: list[dict[str, float]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.weights.append(self.model.get_weights())
        self.logs.append(dict(logs or {}))


# The optimizer


def test_decay_shrinks_kernels_and_embeddings_only(make_tiny_retriever: Make) -> None:
    model = make_tiny_retriever(learn_temperature=True, projection_dim=8).model
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.uniform(1, 2, weight.shape))
    before = [weight.numpy() for weight in model.trainable_weights]
    optimizer = adamw(FitConfig(learning_rate=0.1, weight_decay=0.5, warmup=0), steps=10)
    optimizer.build(model.trainable_weights)
    optimizer.apply([keras.ops.zeros_like(weight) for weight in model.trainable_weights])
    shrunk = set()
    for weight, old in zip(model.trainable_weights, before, strict=True):
        factor = np.unique(np.round(weight.numpy() / old, 5))
        assert factor in (np.float32(0.95), np.float32(1.0)), weight.path
        if factor == np.float32(0.95):
            shrunk.add(weight.path)
    matrices = {weight.path for weight in model.trainable_weights if len(weight.shape) >= 2}
    # Biases of attention heads are the one kind of bias with two axes.
    biases = {path for path in matrices if path.endswith("bias")}
    assert shrunk == matrices - biases
    assert len(shrunk) == 3 + 1 + 6  # embeddings, projection, the kernels of the one layer


@pytest.mark.parametrize(("warmup", "warmup_steps"), [(0.1, 10), (0.25, 25), (0.0, 0)])
def test_schedule(warmup: float, warmup_steps: int) -> None:
    optimizer = adamw(FitConfig(learning_rate=0.2, warmup=warmup), steps=100)
    optimizer.build([keras.Variable(np.zeros(2, np.float32))])
    for step in (0, 3, 9, 10, 11, 24, 25, 60, 99, 100):
        optimizer.iterations.assign(step)
        if step < warmup_steps:
            expected = 0.2 * step / warmup_steps
        else:
            done = (step - warmup_steps) / (100 - warmup_steps)
            expected = 0.2 * 0.5 * (1 + math.cos(math.pi * done))
        assert float(optimizer.learning_rate) == pytest.approx(expected, abs=1e-7)


def test_a_run_of_one_step_is_not_all_warm_up() -> None:
    optimizer = adamw(FitConfig(learning_rate=0.2, warmup=0.9), steps=1)
    optimizer.build([keras.Variable(np.zeros(2, np.float32))])
    assert float(optimizer.learning_rate) == pytest.approx(0.2)


def test_gradients_are_clipped_together() -> None:
    optimizer = adamw(
        FitConfig(learning_rate=5e-5, clip_norm=0.5, weight_decay=0, warmup=0), steps=10
    )
    variables = [keras.Variable(np.zeros(2, np.float32)), keras.Variable(np.zeros(1, np.float32))]
    optimizer.build(variables)
    optimizer.apply([np.array([300.0, 0.0], np.float32), np.array([400.0], np.float32)])
    # Adam's first moment is a tenth of the gradient, which was cut from length 500 to 0.5.
    first = {v.path: v.numpy() for v in optimizer.variables if "momentum" in v.path}
    np.testing.assert_allclose(sorted(np.concatenate(list(first.values()))), [0, 0.03, 0.04])


# Which weights are kept


def test_the_best_epoch_wins_and_the_run_is_recorded(
    tmp_path: Path,
    make_tiny_retriever: Make,
    pairs: Interactions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retriever = make_tiny_retriever()
    untouched = weights_of(retriever)
    scores = iter([0.2, 0.3, 0.6, 0.5, 0.55])
    monkeypatch.setattr(CandidatePool, "score", lambda self, towers: next(scores))
    recorder, steps = Recorder(), []
    recipe = RECIPE.model_copy(update={"epochs": 9, "patience": 2})

    def run() -> FitResult:
        return adapt(
            retriever,
            pairs,
            pairs.catalog.column("title"),
            recipe,
            folder=tmp_path / "run",
            progress=lambda done, total: steps.append((done, total)),
            callbacks=[recorder],
        )

    result = run()
    # Two epochs without a better score after epoch 2: over.
    assert result.held_out == [0.2, 0.3, 0.6, 0.5, 0.55]
    assert result.best_epoch == 2
    assert len(recorder.weights) == len(result.losses) == 4
    assert_equal_weights(weights_of(result.retriever), recorder.weights[1])
    assert np.abs(recorder.weights[1][0] - recorder.weights[3][0]).max() > 0
    assert_equal_weights(weights_of(retriever), untouched)
    assert [log["loss"] for log in recorder.logs] == result.losses
    assert [log["held_out_nDCG@10"] for log in recorder.logs] == result.held_out[1:]

    assert result.held_out_queries == 6
    assert result.pairs + sum(n % 3 == 0 for n in range(24)) <= 32
    # All but the layer on [CLS], which BERT trained for another purpose and no pooling uses.
    unused = retriever.model.query_tower.backbone.pooled_dense.count_params()
    assert result.trained_parameters == sum(w.size for w in untouched) - unused
    per_epoch = -(-result.pairs // 8)
    assert [done for done, _ in steps] == list(range(1, 4 * per_epoch + 1))
    assert {total for _, total in steps} == {9 * per_epoch}
    values = result.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert "retriever" not in values

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "train"))
    events.Reload()
    assert {"epoch_loss", "epoch_held_out_nDCG@10"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("epoch_loss")] == [0, 1, 2, 3]

    # Called again, as after a kill at the very end: nothing is left to train.
    again = run()
    assert len(recorder.weights) == 4
    assert (again.losses, again.held_out, again.best_epoch) == (result.losses, result.held_out, 2)
    assert_equal_weights(weights_of(again.retriever), recorder.weights[1])


def test_training_that_does_harm_is_undone(
    tmp_path: Path, make_tiny_retriever: Make, tiny_catalog: dict[str, list[str]]
) -> None:
    # Queries are titles: untrained towers are perfect, and a step of 100 ruins them.
    folder = tmp_path / "shop"
    folder.mkdir()
    interactions = write_shop(folder, tiny_catalog, tiny_catalog["title"])
    only = interactions.select_rows(np.unique(interactions.query_row, return_index=True)[1])
    retriever = make_tiny_retriever(layers=2)
    # One pass: of weights that are ruined, some find everything by chance, here or there.
    ruinous = {"learning_rate": 100.0, "warmup": 0.0, "held_out": 0.5, "epochs": 1}
    recipe = RECIPE.model_copy(update=ruinous)
    result = adapt(retriever, only, only.catalog.column("title"), recipe, folder=tmp_path / "run")
    assert result.held_out[0] == 1.0
    assert max(result.held_out[1:]) < 1.0
    assert result.best_epoch == 0
    assert_equal_weights(weights_of(result.retriever), weights_of(retriever))
    assert result.retriever.fingerprint() == retriever.fingerprint()


def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions
) -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 1e38, "warmup": 0.0, "epochs": 1})
    with_none_held_out = recipe.model_copy(update={"held_out": 0.0})
    texts = pairs.catalog.column("title")
    with pytest.raises(InputError, match=r"diverged with learning rate 1e\+38: choose a lower"):
        adapt(make_tiny_retriever(), pairs, texts, with_none_held_out, folder=tmp_path / "a")
    # With held-out queries the untrained towers are there to fall back on.
    retriever = make_tiny_retriever()
    result = adapt(retriever, pairs, texts, recipe, folder=tmp_path / "b")
    assert result.held_out[1:] == [0.0]
    assert_equal_weights(weights_of(result.retriever), weights_of(retriever))
    assert json.dumps(result.as_dict(), allow_nan=False)


def test_no_positive_pairs(tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions) -> None:
    none = pairs.select_rows(np.array([], np.int64))
    with pytest.raises(InputError, match="no positive pair"):
        adapt(make_tiny_retriever(), none, pairs.catalog.column("title"), folder=tmp_path / "run")


# After a kill

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import keras
from towers import Retriever
from training.catalog import Catalog
from training.config import FitConfig, TrainConfig
from training.fit import adapt
from training.interactions import Interactions
from training.optimizer import adamw
from training.train import train

folder = Path(sys.argv[1])
interactions = Interactions.read(folder / "interactions.csv", Catalog.read(folder / "catalog.csv"))

class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)

adapt(
    Retriever.load(folder / "model"), interactions, interactions.catalog.column("title"),
    FitConfig.model_validate_json(sys.argv[2]), folder=folder / "run", callbacks=[Kill()],
)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions
) -> None:
    # With dropout, so that the random generators' states matter too; one layer, to be quick.
    plain = make_tiny_retriever()
    config = plain.model.get_config()
    config["query_tower"]["config"]["backbone"]["config"] |= {"dropout": 0.2, "num_layers": 1}
    model = type(plain.model).from_config(config)
    Retriever(model, plain.tokenizer, plain.text).save(tmp_path / "model")
    arguments = [sys.executable, "-c", KILLED_RUN, str(tmp_path), RECIPE.model_dump_json()]

    def run(folder: str) -> tuple[FitResult, Recorder]:
        recorder = Recorder()
        result = adapt(
            Retriever.load(tmp_path / "model"),
            pairs,
            pairs.catalog.column("title"),
            RECIPE,
            folder=tmp_path / folder,
            callbacks=[recorder],
        )
        return result, recorder

    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        whole, of_three_epochs = run("other")  # while the other one gets going
        _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors[-3000:]
    state = json.loads((tmp_path / "run" / "checkpoints" / "state.json").read_text())
    assert len(state["losses"]) == 1

    resumed, of_two_epochs = run("run")
    assert len(of_two_epochs.weights) == 2
    assert len(of_three_epochs.weights) == 3
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-6)
    assert resumed.held_out == pytest.approx(whole.held_out, rel=1e-6)
    for epoch in (1, 2):
        for a, b in zip(
            of_two_epochs.weights[epoch - 1], of_three_epochs.weights[epoch], strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)
    # Dropout did draw.
    assert len(set(np.round(whole.losses, 6))) == 3


def test_no_width_of_a_batch_is_compiled_anew_on_a_gpu(
    tmp_path: Path,
    make_tiny_retriever: Make,
    pairs: Interactions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keras lets XLA compile every shape where TensorFlow has a GPU, unless it is told not to."""
    real = tf.config.list_physical_devices

    def with_gpu(kind: str | None = None) -> list[tf.config.PhysicalDevice]:
        gpu = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
        return real(kind) + (gpu if kind is None else [])

    compiled = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
            compiled.append(self.model.jit_compile)

    monkeypatch.setattr(tf.config, "list_physical_devices", with_gpu)
    adapt(
        make_tiny_retriever(),
        pairs,
        pairs.catalog.column("title"),
        RECIPE.model_copy(update={"epochs": 1}),
        folder=tmp_path / "run",
        callbacks=[Look()],
    )
    assert compiled == [False]


# Soups


@pytest.mark.usefixtures("eagerly")
def test_a_soup_is_the_mean_of_trainings_with_other_seeds(
    tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions
) -> None:
    retriever, texts = make_tiny_retriever(), pairs.catalog.column("title")
    recipe = RECIPE.model_copy(update={"held_out": 0.0, "epochs": 2, "batch_size": 16})
    apart = [
        adapt(retriever, pairs, texts, recipe, folder=tmp_path / str(seed), seed=seed)
        for seed in (5, 6, 7)
    ]
    steps: list[tuple[int, int]] = []
    together = adapt(
        retriever,
        pairs,
        texts,
        recipe.model_copy(update={"soup": 3}),
        folder=tmp_path / "soup",
        seed=5,
        progress=lambda done, total: steps.append((done, total)),
    )
    every = [weights_of(result.retriever) for result in apart]
    assert np.abs(every[0][0] - every[1][0]).max() > 1e-4
    for mean, *several in zip(weights_of(together.retriever), *every, strict=True):
        np.testing.assert_allclose(mean, np.mean(several, axis=0), atol=1e-6)
    losses = np.array([result.losses for result in apart])
    assert together.losses == pytest.approx(losses.mean(axis=0).tolist(), rel=1e-5)
    assert together.trained_parameters == apart[0].trained_parameters
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("better", [True, False])
def test_a_soup_that_does_harm_is_undone(
    better: bool,
    tmp_path: Path,
    make_tiny_retriever: Make,
    pairs: Interactions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Before and after each epoch of two trainings; then the soup.
    scores = iter([0.2, 0.3, 0.2, 0.2, 0.5, 0.1, 0.4 if better else 0.1])
    monkeypatch.setattr(CandidatePool, "score", lambda self, towers: next(scores))
    retriever = make_tiny_retriever()
    result = adapt(
        retriever,
        pairs,
        pairs.catalog.column("title"),
        RECIPE.model_copy(update={"soup": 2, "epochs": 2, "batch_size": 16}),
        folder=tmp_path / "run",
    )
    assert result.held_out == [0.2, 0.4 if better else 0.1]
    assert result.best_epoch == (1 if better else 0)
    changed = np.abs(weights_of(result.retriever)[0] - weights_of(retriever)[0]).max()
    assert bool(changed > 0) == better


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_an_interrupted_soup_goes_on_exactly(
    tmp_path: Path, make_tiny_retriever: Make, pairs: Interactions
) -> None:
    class Interrupt(keras.callbacks.Callback):
        def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
            trainings.append(1)

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            if len(trainings) == 2 and epoch == 0:
                raise KeyboardInterrupt

    def run(folder: str, *callbacks: keras.callbacks.Callback) -> FitResult:
        return adapt(
            make_tiny_retriever(),
            pairs,
            pairs.catalog.column("title"),
            RECIPE.model_copy(update={"soup": 2, "epochs": 2, "batch_size": 16}),
            folder=tmp_path / folder,
            callbacks=callbacks,
        )

    trainings: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run("run", Interrupt())
    resumed, whole = run("run"), run("other")
    assert resumed.held_out == pytest.approx(whole.held_out, rel=1e-6)
    for a, b in zip(weights_of(resumed.retriever), weights_of(whole.retriever), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("method", ["adapters", "prefix", "linear", "zero-shot"])
def test_what_no_soup_can_be_made_of(method: str, tmp_path: Path, pairs: Interactions) -> None:
    config = TrainConfig.of({"method": method, "fit": {"soup": 2}}, "test")
    with pytest.raises(InputError, match="soup"):
        train(config, pairs.catalog, pairs, tmp_path / "run")
    assert not (tmp_path / "run").exists()
