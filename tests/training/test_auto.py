"""The choice of method: Bayes by numerical integration, held-out queries, towers good and bad."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

import training.auto
from towers.errors import InputError
from towers.retriever import Retriever
from training.auto import choose_method, expected_gain
from training.catalog import Catalog
from training.config import FitConfig
from training.fit import FitResult
from training.interactions import Interactions
from training.metrics import ideal_dcg_at_k, ndcg_at_k

Make = Callable[..., Retriever]
N_QUERIES = 30


@pytest.mark.parametrize(
    ("n", "mean", "before"),
    [
        (1, 0.5, 0),
        (8, -0.1, 0),
        (8, 0.2, 0),
        (16, 0.1, 0.005),
        (400, -0.02, 0.01),
        (400, 0.05, 0.01),
    ],
)
def test_expected_gain_is_the_posterior_mean(n: int, mean: float, before: float) -> None:
    differences = np.random.default_rng(n).normal(mean, 0.3, n)
    expected, error = expected_gain(differences)
    grid = np.linspace(-1, 1, 200_001)
    posterior = norm.pdf(grid, before, 0.03) * norm.pdf(differences.mean(), grid, error)
    assert expected == pytest.approx((grid * posterior).sum() / posterior.sum(), abs=1e-5)
    if n == 400:
        assert error == pytest.approx(differences.std(ddof=1) / 20, rel=0.05)


def test_few_queries_say_little_and_many_much() -> None:
    assert -0.01 < expected_gain(np.full(2, -0.2))[0] < 0.01
    assert expected_gain(np.full(200, -0.2))[0] < -0.1
    assert expected_gain(np.full(200, 0.2))[0] > 0.1


@pytest.fixture
def pairs(tmp_path: Path) -> Interactions:
    """Thirty queries, each with one item of forty."""
    rows = "".join(f'i{n},"item {chr(97 + n % 26)}{chr(97 + n // 26)} thing"\n' for n in range(40))
    (tmp_path / "catalog.csv").write_text("item_id,title\n" + rows, "utf-8")
    rows = "".join(f"query {chr(97 + n % 26)} {n},i{n}\n" for n in range(N_QUERIES))
    (tmp_path / "pairs.csv").write_text("query,item_id\n" + rows, "utf-8")
    return Interactions.read(tmp_path / "pairs.csv", Catalog.read(tmp_path / "catalog.csv"))


class Oracle:
    """Stands for towers: knows each query's item, or with `skill` 0 guesses."""

    def __init__(self, pairs: Interactions, skill: float) -> None:
        rng = np.random.default_rng(1)
        self.texts = texts_of(pairs)
        items = rng.normal(size=(len(self.texts), 64))
        self.items = items / np.linalg.norm(items, axis=1, keepdims=True)
        self.row = dict(zip(pairs.queries, pairs.item_row.tolist(), strict=True))
        self.skill, self.known_items = skill, None

    def encode_items(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        return self.items[[self.texts.index(text) for text in texts]].astype(np.float32)

    encode_base = encode_items

    def base_fingerprint(self) -> str:
        return str(self.skill)

    def knowing(self, texts: Sequence[str], vectors: np.ndarray) -> Oracle:
        assert vectors.tolist() == self.encode_base(texts).tolist()
        return self

    def encode_queries(self, queries: Sequence[str], **_: Any) -> np.ndarray:
        noise = np.random.default_rng(len(queries[0])).normal(size=(len(queries), 64)) / 8
        vectors = self.skill * self.items[[self.row[query] for query in queries]] + noise
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def texts_of(pairs: Interactions) -> list[str]:
    return [str(title) for title in pairs.catalog.column("title")]


def ignorant(texts: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    return lambda queries: np.zeros((len(queries), len(texts)), np.float32)


def choose(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pairs: Interactions,
    *,
    before: float,
    after: dict[str, float],
    **options: Any,
) -> tuple[Any, list[tuple[str, set[str]]]]:
    """The choice with towers of given skill in place of trained ones, and who saw which queries."""
    trained: list[tuple[str, set[str]]] = []

    def fake(
        retriever: Any, part: Interactions, texts: Any, config: FitConfig, *, method: str, **_: Any
    ) -> FitResult:
        assert config.held_out == 0
        trained.append((method, set(part.queries)))
        return FitResult(Oracle(pairs, after[method]))  # type: ignore[arg-type]

    monkeypatch.setattr(training.auto, "adapt", fake)
    monkeypatch.setattr(
        training.auto,
        "interpolate",
        lambda a, b, share: Oracle(pairs, (1 - share) * a.skill + share * b.skill),
    )
    texts = texts_of(pairs)
    options.setdefault("lexical", ignorant(texts))
    choice = choose_method(
        Oracle(pairs, before),  # type: ignore[arg-type]
        pairs,
        texts,
        FitConfig(),
        folder=tmp_path,
        **options,
    )
    return choice, trained


def test_every_query_is_held_out_of_one_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Interactions
) -> None:
    after = {"linear": 0.3, "full": 0.3}
    choice, trained = choose(monkeypatch, tmp_path, pairs, before=0.3, after=after)
    for method in ("linear", "full"):
        unseen = [set(pairs.queries) - seen for name, seen in trained if name == method]
        assert [len(queries) for queries in unseen] == [15, 15]
        assert set.union(*unseen) == set(pairs.queries)
    assert choice.queries == N_QUERIES
    assert [(trial.method, trial.share) for trial in choice.trials] == [
        ("zero-shot", 0.0),
        ("linear", 1.0),
        ("full", 0.5),
        ("full", 1.0),
    ]


@pytest.mark.parametrize(
    ("before", "linear", "full", "expected", "share"),
    [
        (0.5, 0.05, 0.0, "zero-shot", 0.0),  # training does harm
        (0.1, 0.9, 0.1, "linear", 1.0),
        (0.05, 0.05, 0.3, "full", 1.0),
    ],
)
def test_the_best_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pairs: Interactions,
    before: float,
    linear: float,
    full: float,
    expected: str,
    share: float,
) -> None:
    after = {"linear": linear, "full": full}
    choice, _ = choose(monkeypatch, tmp_path, pairs, before=before, after=after, weight=0.25)
    assert (choice.method, choice.share) == (expected, share)
    best = max(choice.trials, key=lambda trial: trial.expected)
    assert (best.method, best.share) == (expected, share)
    assert choice.lexical_weight == 0.25
    assert choice.reason.startswith(
        f"nDCG@10 on {N_QUERIES} queries held out of training: zero-shot"
    )


def test_words_that_know_the_answer_get_the_weight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Interactions
) -> None:
    oracle = Oracle(pairs, 1.0)

    def knowing(queries: Sequence[str]) -> np.ndarray:
        return np.eye(len(oracle.texts), dtype=np.float32)[[oracle.row[query] for query in queries]]

    choice, _ = choose(
        monkeypatch,
        tmp_path,
        pairs,
        before=0.1,
        after={"linear": 0.1, "full": 0.1},
        lexical=knowing,
    )
    assert choice.lexical_weight > 0.4
    assert choice.trials[0].ndcg == pytest.approx(1.0)


def test_towers_that_gain_much_alone_need_little_gain_with_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Interactions
) -> None:
    """Words find everything already, so that with them nothing is gained, and nothing lost."""
    oracle = Oracle(pairs, 1.0)

    def knowing(queries: Sequence[str]) -> np.ndarray:
        return np.eye(len(oracle.texts), dtype=np.float32)[[oracle.row[query] for query in queries]]

    def chosen(full: float) -> tuple[str, float, float]:
        choice, _ = choose(
            monkeypatch,
            tmp_path,
            pairs,
            before=0.1,
            after={"linear": 0.1, "full": full},
            lexical=knowing,
            weight=0.75,
        )
        gains = {(trial.method, trial.share): trial.gain for trial in choice.trials}
        return choice.method, choice.share, gains["full", 1.0]

    assert chosen(0.1) == ("zero-shot", 0.0, 0.0)
    assert chosen(0.3) == ("full", 1.0, 0.0)


def test_words_that_do_not_count_make_room_for_distillation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Interactions
) -> None:
    after = {"linear": 0.1, "full": 0.2, "distilled": 0.9}
    choice, _ = choose(monkeypatch, tmp_path, pairs, before=0.1, after=after, weight=0.0)
    assert choice.method == "distilled"
    assert choice.lexical_weight == 0.0


def test_a_warm_up_is_a_start_among_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Interactions
) -> None:
    made: list[float] = []

    def warm(skill: float) -> Callable[[], Any]:
        def make() -> Oracle:
            made.append(skill)
            return Oracle(pairs, skill)

        return make

    def chosen(part: Interactions, skill: float) -> tuple[str, bool]:
        after = {"linear": 0.05, "full": 0.1}
        choice, _ = choose(
            monkeypatch, tmp_path, part, before=0.05, after=after, weight=0.25, warm=warm(skill)
        )
        return choice.method, choice.warm_up

    assert chosen(pairs, 0.6) == ("zero-shot", True)
    assert chosen(pairs, 0.0) == ("full", False)
    assert made == [0.6, 0.0]
    chosen(pairs.select_queries(range(15)), 0.6)  # minutes that so few queries could not pay back
    assert made == [0.6, 0.0]

    def wordless() -> Any:
        raise InputError("too few words")

    after = {"linear": 0.05, "full": 0.3}
    choice, trained = choose(
        monkeypatch, tmp_path, pairs, before=0.05, after=after, weight=0.25, warm=wordless
    )
    assert (choice.method, choice.warm_up) == ("full", False)
    assert len(trained) == 4


def test_two_queries_are_too_few(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Interactions
) -> None:
    few = pairs.select_queries([0, 1])
    choice, trained = choose(monkeypatch, tmp_path, few, before=0.1, after={})
    assert (choice.method, choice.queries, trained) == ("zero-shot", 0, [])
    assert choice.reason == (
        "too few queries to try anything on: four or more are needed, of different items"
    )


@pytest.mark.usefixtures("eagerly")
def test_scores_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch,
    make_tiny_retriever: Make,
    tmp_path: Path,
    pairs: Interactions,
) -> None:
    """With real towers and training: nDCG of zero-shot against a plain computation."""
    retriever, texts = make_tiny_retriever(), texts_of(pairs)
    encoded = list[str]()

    def encode_base(towers: Retriever, some: Sequence[str], **options: Any) -> np.ndarray:
        encoded.extend(some)
        return once(towers, some, **options)

    once = Retriever.encode_base
    monkeypatch.setattr(Retriever, "encode_base", encode_base)
    config = FitConfig(epochs=1, learning_rate=1e-3, mixed_precision="float32")
    choice = choose_method(retriever, pairs, texts, config, folder=tmp_path)
    scores = retriever.encode_queries(pairs.queries) @ retriever.encode_items(texts).T
    gains = np.zeros_like(scores)
    gains[pairs.query_row, pairs.item_row] = 1
    best = np.argsort(-scores, axis=1)[:, :10]
    ideal = ideal_dcg_at_k(pairs.query_row, np.ones(len(pairs)), len(gains), 10)
    expected = ndcg_at_k(np.take_along_axis(gains, best, axis=1), ideal, 10).mean()
    assert choice.trials[0].ndcg == pytest.approx(expected, abs=0.02)  # items in bfloat16
    assert choice.lexical_weight == 0.0
    assert {trial.method for trial in choice.trials} == {"zero-shot", "linear", "full"}
    assert sorted(encoded) == sorted(texts)  # for both folds, and for the linear map
