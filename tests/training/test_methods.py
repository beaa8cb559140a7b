"""Adapting by each method: what changes, what must not, what is left, and going on after a kill."""

from __future__ import annotations

import math
import re
import tomllib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from towers.cli.train import METHODS
from towers.errors import InputError
from towers.interpolation import interpolate, soup
from towers.retriever import Retriever
from towers.text_encoder import TextEncoder
from towers.two_tower import TwoTower
from training.catalog import Catalog
from training.config import FitConfig, Method
from training.fit import FitResult, adapt
from training.held_out import CandidatePool
from training.interactions import Interactions
from training.methods import LEARNING_RATES, trainable_copy, with_schedule
from training.optimizer import adamw, layer_factors

Make = Callable[..., Retriever]
# `distilled` is two trainings: test_distillation.py
GRADIENT_METHODS: list[Method] = [name for name in LEARNING_RATES if name != "distilled"]
RECIPE = FitConfig(epochs=2, batch_size=8, held_out=0.25, min_held_out=4)


@pytest.fixture(scope="module")
def pairs(
    tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list[str]]
) -> Interactions:
    folder = tmp_path_factory.mktemp("shop")
    ids = tiny_catalog["item_id"]
    lines = ["item_id,title"]
    lines += [f'{i},"{t}"' for i, t in zip(ids, tiny_catalog["title"], strict=True)]
    (folder / "catalog.csv").write_text("\n".join(lines), "utf-8")
    words = ["boil", "water", "fast", "slow", "coffee", "hot", "red", "steel", "hose", "cat"]
    lines = ["query,item_id"]
    rng = np.random.default_rng(0)
    for n in range(24):
        lines.append(" ".join(rng.choice(words, 3, replace=False)) + f" {n},{ids[n % 8]}")
    (folder / "interactions.csv").write_text("\n".join(lines), "utf-8")
    return Interactions.read(folder / "interactions.csv", Catalog.read(folder / "catalog.csv"))


@pytest.fixture
def texts(pairs: Interactions) -> list[str]:
    return pairs.catalog.column("title")


def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every held-out score better than the one before."""
    scores = iter(range(1, 100))
    monkeypatch.setattr(CandidatePool, "score", lambda self, towers: next(scores) / 100)


def test_the_command_line_knows_all_methods() -> None:
    assert sorted(METHODS) == sorted(["auto", *typing.get_args(Method)])
    assert sorted(LEARNING_RATES) == sorted(set(METHODS) - {"auto", "linear", "zero-shot"})


def test_rate_and_passes_are_the_methods_own_unless_given() -> None:
    for pair_count in (8, 5000):
        config = with_schedule(FitConfig(), "lora", pair_count)
        assert (config.learning_rate, config.epochs) == (LEARNING_RATES["lora"], 5)
        given = FitConfig(learning_rate=0.5, epochs=7)
        assert with_schedule(given, "full", pair_count) == given


@pytest.mark.parametrize("method", ["full", "distilled"])
def test_all_weights_pass_over_many_pairs_less_often(method: Method) -> None:
    configs = [with_schedule(FitConfig(), method, n) for n in (8, 128, 256, 512, 2000, 100_000)]
    assert {config.learning_rate for config in configs} == {1e-4}
    assert [config.epochs for config in configs] == [5, 5, 4, 2, 1, 1]


# Numbers of trained weights


@dataclass(frozen=True)
class Bert:
    """The dimensions of an encoder: layers, width, inner width, heads, pieces, positions."""

    layers: int
    width: int
    inner: int
    heads: int
    pieces: int
    positions: int

    @property
    def layer(self) -> int:
        """Weights of a layer: four square kernels, two of the feed-forward part, their biases, and
        scale and shift of two norms."""
        h, m = self.width, self.inner
        return 4 * (h * h + h) + (h * m + m) + (m * h + h) + 2 * 2 * h

    @property
    def all(self) -> int:
        """Embeddings of pieces, positions and two segments, their norm, and the layers."""
        return (self.pieces + self.positions + 2 + 2) * self.width + self.layers * self.layer


# By the row of the table in docs/methods.md: method and options.
COUNTS: dict[tuple[Method, str], Callable[[Bert, FitConfig], int]] = {
    ("zero-shot", ""): lambda b, c: 0,
    ("linear", ""): lambda b, c: b.width**2,
    ("full", ""): lambda b, c: b.all,
    ("distilled", ""): lambda b, c: b.all,
    ("top", ""): lambda b, c: c.top_layers * b.layer,
    # Two kernels, each with one matrix into the rank and one out of it.
    ("lora", ""): lambda b, c: b.layers * 2 * c.rank * (b.width + b.width),
    # Query, key, value, output; and the two of the feed-forward part.
    ("lora", 'kernels = "all"'): lambda b, c: (
        b.layers * c.rank * (4 * (b.width + b.width) + 2 * (b.width + b.inner))
    ),
    # Half as many ranks again, each with an entry of the diagonal.
    ("adalora", ""): lambda b, c: b.layers * 2 * -(-c.rank * 3 // 2) * (b.width + 1 + b.width),
    # Four projections, two of the feed-forward part, two norms; and the norm of the embeddings.
    ("bitfit", ""): lambda b, c: (
        b.layers * (4 * b.width + b.inner + b.width + 2 * b.width) + b.width
    ),
    # Two of them: down and up, each with its bias; scale and shift of two norms.
    ("adapters", ""): lambda b, c: (
        b.layers * (2 * (2 * b.width * c.bottleneck + c.bottleneck + b.width) + 2 * 2 * b.width)
    ),
    # Keys and values, and a gate for each head.
    ("prefix", ""): lambda b, c: b.layers * (2 * c.prefix_length * b.width + b.heads),
}
ROWS = [pytest.param(*row, id=" ".join(row).strip()) for row in COUNTS]


# `distilled` takes 16 steps at least: test_distillation.py counts it where it trains anyway.
@pytest.mark.parametrize(("method", "options"), [row for row in ROWS if row.id != "distilled"])
@pytest.mark.usefixtures("eagerly")
def test_a_training_says_how_many_weights_it_trains(
    method: Method,
    options: str,
    tmp_path: Path,
    pairs: Interactions,
    texts: list[str],
    make_tiny_retriever: Make,
    tiny_vocabulary: tuple[str, ...],
) -> None:
    other = {"rank": 3, "top_layers": 1, "bottleneck": 5, "prefix_length": 6}  # than by default
    steps = {"epochs": 1, "batch_size": 2, "held_out": 0.0}
    config = FitConfig(**other, **steps, **tomllib.loads(options))
    layers = 2 if method == "top" else 1
    result = adapt(
        make_tiny_retriever(layers=layers),
        pairs.select_queries([0, 1]),
        texts,
        config,
        method=method,
        folder=tmp_path,
    )
    tiny = Bert(layers, 32, 64, 2, pieces=len(tiny_vocabulary), positions=64)
    assert result.trained_parameters == COUNTS[method, options](tiny, config)


@pytest.fixture(scope="module")
def documented() -> dict[tuple[str, str], int]:
    """The weights on all-MiniLM-L6-v2, by method and options, as docs/methods.md has them."""
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text("utf-8")
    table = text.partition("weights on all-MiniLM-L6-v2 |")[2].partition("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        names, _, weights, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        method, *options = re.findall("`(.*?)`", names)
        found[method, " ".join(options)] = int(re.match(r"[\d,]*\d", weights)[0].replace(",", ""))
    return found


def test_the_table_of_the_methods_has_all_of_them(documented: dict[tuple[str, str], int]) -> None:
    assert set(documented) == set(COUNTS)
    assert {method for method, _ in documented} == set(typing.get_args(Method))


@pytest.fixture(scope="module")
def mini_lm(tiny_retriever: Retriever) -> Retriever:
    """Towers of the shape of all-MiniLM-L6-v2 with random weights."""
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522,
        num_layers=6,
        num_heads=12,
        hidden_dim=384,
        intermediate_dim=1536,
        max_sequence_length=512,
    )
    return Retriever(TwoTower(TextEncoder(backbone)), tiny_retriever.tokenizer, tiny_retriever.text)


@pytest.mark.parametrize(("method", "options"), ROWS)
def test_the_numbers_of_the_docs(
    method: Method,
    options: str,
    documented: dict[tuple[str, str], int],
    mini_lm: Retriever,
    tmp_path: Path,
    pairs: Interactions,
    texts: list[str],
) -> None:
    config = FitConfig(**tomllib.loads(options))
    if method in ("zero-shot", "linear"):
        # One query, which leaves nothing to cross-validate, and other items to tell its own from.
        one, config = pairs.select_queries([0]), FitConfig(catalog_negatives=1)
        result = adapt(mini_lm, one, texts, config, method=method, folder=tmp_path)
        count = result.trained_parameters
    else:
        model = trainable_copy(mini_lm.model, method, config)
        count = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    shape = Bert(6, 384, 1536, 12, pieces=30522, positions=512)
    assert documented[method, options] == count == COUNTS[method, options](shape, config)


# What training changes


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_only_what_is_trained_changes(
    method: Method,
    tmp_path: Path,
    pairs: Interactions,
    texts: list[str],
    make_tiny_retriever: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rising(monkeypatch)
    retriever = make_tiny_retriever(seed=1)
    frozen_before: list[np.ndarray] = []
    frozen_after: list[np.ndarray] = []
    trained: list[str] = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs: dict | None = None) -> None:
            trained.extend(weight.path for weight in self.model.trainable_weights)
            frozen_before.extend(w.numpy() for w in self.model.non_trainable_weights)
            optimized = self.model.optimizer._trainable_variables
            assert [id(w) for w in optimized] == [id(w) for w in self.model.trainable_weights]

        def on_train_end(self, logs: dict | None = None) -> None:
            frozen_after.extend(w.numpy() for w in self.model.non_trainable_weights)

    before = retriever.fingerprint()
    recipe = RECIPE.model_copy(update={"top_layers": 1})
    result = adapt(
        retriever, pairs, texts, recipe, method=method, folder=tmp_path, callbacks=[Watch()]
    )
    assert trained
    for a, b in zip(frozen_before, frozen_after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert retriever.fingerprint() == before != result.retriever.fingerprint()
    assert result.best_epoch == 2
    assert result.learning_rate == LEARNING_RATES[method]
    tower = result.retriever.model.query_tower
    assert (tower.adaptation is None) == (method not in ("adapters", "prefix"))
    vectors = result.retriever.encode_queries(pairs.queries)
    assert np.abs(vectors - retriever.encode_queries(pairs.queries)).max() > 1e-4

    result.retriever.save(tmp_path / "model")
    again = Retriever.load(tmp_path / "model")
    assert again.fingerprint() == result.retriever.fingerprint()
    np.testing.assert_array_equal(again.encode_queries(pairs.queries), vectors)
    if tower.adaptation is None:
        # Nothing is frozen for good: the result can be adapted once more.
        assert len(tower.trainable_weights) == len(retriever.model.query_tower.trainable_weights)
    else:
        with pytest.raises(InputError, match="cannot be adapted once more"):
            adapt(again, pairs, texts, recipe, method="full", folder=tmp_path / "second")


# The state of all methods is saved by the same code; AdaLoRA has the most of it.
@pytest.mark.parametrize(
    "method",
    [m if m == "adalora" else pytest.param(m, marks=pytest.mark.slow) for m in GRADIENT_METHODS],
)
def test_an_interrupted_run_goes_on_exactly(
    method: Method,
    tmp_path: Path,
    pairs: Interactions,
    texts: list[str],
    make_tiny_retriever: Make,
) -> None:
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            if (self.epoch, batch) == (1, 1):
                raise KeyboardInterrupt

    def run(folder: str, *callbacks: keras.callbacks.Callback) -> FitResult:
        plain = make_tiny_retriever(seed=1)
        config = plain.model.get_config()
        config["query_tower"]["config"]["backbone"]["config"] |= {"dropout": 0.2, "num_layers": 1}
        keras.utils.set_random_seed(0)
        retriever = Retriever(TwoTower.from_config(config), plain.tokenizer, plain.text)
        return adapt(
            retriever,
            pairs,
            texts,
            RECIPE.model_copy(update={"patience": 9, "top_layers": 1}),
            method=method,
            folder=tmp_path / folder,
            callbacks=callbacks,
        )

    with pytest.raises(KeyboardInterrupt):
        run("run", Interrupt())
    resumed, whole = run("run"), run("other")
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-6)
    assert resumed.held_out == pytest.approx(whole.held_out, rel=1e-6)
    np.testing.assert_allclose(
        resumed.retriever.encode_items(texts), whole.retriever.encode_items(texts), atol=1e-6
    )


@pytest.mark.parametrize("method", ["full", "lora", "adapters", "linear"])
def test_the_query_tower_alone(
    method: Method,
    tmp_path: Path,
    pairs: Interactions,
    texts: list[str],
    make_tiny_retriever: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rising(monkeypatch)
    monkeypatch.setattr("training.linear.STRENGTHS", (0.1,))
    retriever = make_tiny_retriever(seed=1)
    recipe = RECIPE.model_copy(update={"towers": "query"})
    adapted = adapt(retriever, pairs, texts, recipe, method=method, folder=tmp_path).retriever
    assert not adapted.model.shared
    assert adapted.fingerprint() == retriever.fingerprint()  # an index stays valid
    np.testing.assert_array_equal(adapted.encode_items(texts), retriever.encode_items(texts))
    change = adapted.encode_queries(pairs.queries) - retriever.encode_queries(pairs.queries)
    assert np.abs(change).max() > 1e-3
    assert adapted.model.item_tower.trainable_weights  # nothing is frozen for good


def test_separate_towers_have_an_adaptation_each(make_tiny_retriever: Make) -> None:
    model = make_tiny_retriever(shared=False).model
    config = FitConfig(learning_rate=1.0)
    copy = trainable_copy(model, "lora", config)
    assert copy.query_tower.adaptation is not copy.item_tower.adaptation
    one = trainable_copy(make_tiny_retriever().model, "lora", config)
    assert len(copy.trainable_weights) == 2 * len(one.trainable_weights) > 0


def test_more_top_layers_than_there_are(
    tmp_path: Path, pairs: Interactions, texts: list[str], make_tiny_retriever: Make
) -> None:
    with pytest.raises(InputError, match="top_layers is 3; the encoder has 2 layers"):
        adapt(
            make_tiny_retriever(layers=2),
            pairs,
            texts,
            FitConfig(top_layers=3),
            method="top",
            folder=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_zero_shot_is_what_came(
    tmp_path: Path, pairs: Interactions, texts: list[str], make_tiny_retriever: Make
) -> None:
    retriever = make_tiny_retriever()
    result = adapt(retriever, pairs, texts, method="zero-shot", folder=tmp_path)
    assert result.retriever is retriever
    assert result.trained_parameters == 0


# Learning rates by layer


def test_lower_layers_learn_more_slowly(make_tiny_retriever: Make) -> None:
    model = make_tiny_retriever(layers=2, projection_dim=8, learn_temperature=True).model
    config = FitConfig(learning_rate=0.1, layer_decay=0.5, warmup=0, weight_decay=0, clip_norm=1e9)
    before = [weight.numpy() for weight in model.trainable_weights]
    optimizer = adamw(config, 10, model)
    optimizer.build(model.trainable_weights)
    optimizer.apply([keras.ops.ones_like(weight) for weight in model.trainable_weights])
    backbone = model.query_tower.backbone
    first, second = ({id(w) for w in layer.weights} for layer in backbone.transformer_layers)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        # Adam's first step is the learning rate, whatever the gradient.
        expected = 0.1
        if id(weight) in second:
            expected = 0.05
        elif id(weight) in first:
            expected = 0.025
        elif any(weight is other for other in backbone.weights):
            expected = 0.0125
        np.testing.assert_allclose(old - weight.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_factors_of_separate_towers(make_tiny_retriever: Make) -> None:
    model = make_tiny_retriever(shared=False, layers=2).model
    factors = layer_factors(model, 0.5)
    assert set(factors.values()) == {0.5, 0.25, 0.125}


# Between models


def moved(retriever: Retriever, seed: int) -> Retriever:
    copy = soup([retriever])
    rng = np.random.default_rng(seed)
    copy.model.set_weights(
        [
            w + rng.normal(scale=0.1, size=w.shape).astype(np.float32)
            for w in copy.model.get_weights()
        ]
    )
    return copy


def test_interpolation_by_hand(make_tiny_retriever: Make) -> None:
    zero_shot = make_tiny_retriever(seed=1)
    adapted = moved(zero_shot, 0)
    before = zero_shot.model.get_weights(), adapted.model.get_weights()
    for weight in (0.0, 0.3, 1.0):
        between = interpolate(zero_shot, adapted, weight).model.get_weights()
        for a, b, c in zip(*before, between, strict=True):
            np.testing.assert_allclose(c, a + weight * (b - a), atol=1e-6)
    for now, then in zip(adapted.model.get_weights(), before[1], strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("method", ["linear", "adapters", "prefix"])
def test_interpolation_of_what_is_added(
    method: Method,
    tmp_path: Path,
    pairs: Interactions,
    texts: list[str],
    make_tiny_retriever: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rising(monkeypatch)
    monkeypatch.setattr("training.linear.STRENGTHS", (0.1,))
    zero_shot = make_tiny_retriever(seed=1)
    adapted = adapt(zero_shot, pairs, texts, RECIPE, method=method, folder=tmp_path).retriever
    start, end = zero_shot.encode_items(texts), adapted.encode_items(texts)
    for weight, expected in ((0.0, start), (1.0, end)):
        vectors = interpolate(zero_shot, adapted, weight).encode_items(texts)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    middle = interpolate(zero_shot, adapted, 0.5).encode_items(texts)
    assert min(np.abs(middle - start).max(), np.abs(middle - end).max()) > 1e-4


@pytest.mark.usefixtures("eagerly")
def test_adapt_keeps_the_best_share(
    tmp_path: Path,
    pairs: Interactions,
    texts: list[str],
    make_tiny_retriever: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Before training, after two epochs, then shares 0, .25, .5 and 1 of the way.
    scores = iter([0.1, 0.2, 0.3, 0.1, 0.4, 0.4, 0.3])
    monkeypatch.setattr(CandidatePool, "score", lambda self, towers: next(scores))
    zero_shot = make_tiny_retriever(seed=1)
    recipe = RECIPE.model_copy(update={"interpolate": [1.0, 0.5, 0.25, 0.0]})
    result = adapt(zero_shot, pairs, texts, recipe, folder=tmp_path / "a")
    assert result.interpolation == [(0.0, 0.1), (0.25, 0.4), (0.5, 0.4), (1.0, 0.3)]
    assert result.share == 0.25
    rising(monkeypatch)
    whole = adapt(zero_shot, pairs, texts, RECIPE, folder=tmp_path / "b")
    assert (whole.share, whole.interpolation) == (1.0, [])
    expected = interpolate(zero_shot, whole.retriever, 0.25)
    for a, b in zip(
        result.retriever.model.get_weights(), expected.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_soup_is_the_mean(make_tiny_retriever: Make) -> None:
    zero_shot = make_tiny_retriever(seed=1, learn_temperature=True)
    several = [moved(zero_shot, seed) for seed in range(3)]
    mean = soup(several).model.get_weights()
    for same, weight in zip(
        zip(*(r.model.get_weights() for r in several), strict=True), mean, strict=True
    ):
        np.testing.assert_allclose(weight, sum(same) / 3, atol=1e-6)


def test_what_makes_no_soup(make_tiny_retriever: Make) -> None:
    with pytest.raises(ValueError, match="at least one"):
        soup([])
    with pytest.raises(ValueError, match="equal shapes"):
        soup([make_tiny_retriever(), make_tiny_retriever(projection_dim=8)])
    plain = make_tiny_retriever()
    model = trainable_copy(plain.model, "adapters", FitConfig())
    with pytest.raises(ValueError, match="adapters or prefixes"):
        soup([Retriever(model, plain.tokenizer, plain.text)])
    with pytest.raises(ValueError, match="must have no adapters"):
        interpolate(Retriever(model, plain.tokenizer, plain.text), plain, 0.5)


def test_frozen_towers_cost_no_gradient(make_tiny_retriever: Make) -> None:
    """The graph of the gradients of one top layer is smaller than that of all layers."""
    sizes = {}
    for method in ("full", "top"):
        tower = trainable_copy(make_tiny_retriever(layers=2).model, method, FitConfig(top_layers=1))
        encoder = tower.query_tower

        @tf.function(autograph=False)
        def gradients(ids: tf.Tensor, encoder: object = encoder) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                vectors = encoder({"token_ids": ids, "padding_mask": ids}, training=True)
                loss = tf.reduce_sum(vectors[:, 0])
            return tape.gradient(loss, [w.value for w in encoder.trainable_weights])

        graph = gradients.get_concrete_function(tf.TensorSpec([None, None], tf.int32)).graph
        sizes[method] = sum(op.type == "MatMul" for op in graph.get_operations())
    # Per layer 4 products forward and 8 back; below the lowest trained weight none goes back.
    assert sizes["full"] - sizes["top"] >= 8
