"""Runs without interactions, and the warm-up before a run with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import training.train
from towers.errors import InputError
from towers.item_text import ItemTemplate
from towers.retriever import Retriever
from training.auto import Choice
from training.catalog import Catalog
from training.config import TrainConfig
from training.interactions import Interactions
from training.label_free import train_label_free
from training.lexical_weight import PRIOR_WEIGHT, LexicalScorer
from training.run_folder import RunFolder
from training.train import train

FIT = {"epochs": 1, "min_steps": 1, "batch_size": 8, "pseudo_queries": 24}
ENCODER = {
    "query_max_length": 12,
    "item_max_length": 24,
    "item_template": "{title}[. {description}]",
}


@pytest.fixture
def catalog(tmp_path: Path, tiny_catalog: dict[str, list[str]]) -> Catalog:
    rows = zip(*tiny_catalog.values(), strict=True)
    lines = [",".join(tiny_catalog), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    (tmp_path / "catalog.csv").write_text("\n".join(lines), "utf-8")
    return Catalog.read(tmp_path / "catalog.csv")


def config(preset: str, **options: object) -> TrainConfig:
    return TrainConfig.read(None, encoder={"preset": preset, **ENCODER}, fit=FIT, **options)


def no_words(template: ItemTemplate, catalog: Catalog) -> LexicalScorer:
    def score(queries: Sequence[str]) -> np.ndarray:
        return np.zeros((len(queries), len(catalog)), np.float32)

    return score


def changed(run: Path, preset: str) -> bool:
    trained = RunFolder.existing(run).load_retriever()
    return trained.fingerprint() != Retriever.from_preset(preset, text=trained.text).fingerprint()


def test_without_training_the_towers_stay_as_they_came(
    tmp_path: Path, tiny_preset: str, catalog: Catalog
) -> None:
    run = tmp_path / "run"
    metrics = train_label_free(config(tiny_preset), catalog, run, lexical=no_words)
    assert (metrics["method"], metrics["shots"], metrics["items"]) == ("zero-shot", 0, 8)
    assert metrics["lexical"]["weight"] == PRIOR_WEIGHT == RunFolder.existing(run).lexical_weight
    assert json.loads((run / "metrics.json").read_text("utf-8")) == metrics
    assert set(json.loads((run / "run.json").read_text("utf-8"))["data"]) == {"catalog"}
    assert not (run / "shots.csv").exists()
    assert not changed(run, tiny_preset)


def test_warm_up_and_distillation_train_on_the_catalogue(
    tmp_path: Path, tiny_preset: str, catalog: Catalog
) -> None:
    settings = config(tiny_preset, method="distilled", warm_up="catalog", lexical="off")
    told: list[str] = []
    metrics = train_label_free(
        settings,
        catalog,
        tmp_path / "run",
        lexical=no_words,
        progress=lambda name, done, total: told.append(name),
    )
    assert list(dict.fromkeys(told)) == ["Warming up", "Training"]
    for part in ("warm_up", "distillation"):
        assert metrics[part]["best_epoch"] == len(metrics[part]["losses"]) == 1
    assert metrics["lexical"]["weight"] == 0
    assert changed(tmp_path / "run", tiny_preset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "full"}, "method full learns from pairs.*give --interactions"),
        ({"method": "linear"}, "method linear learns from pairs"),
        ({"shots": 8}, "shots are drawn from interactions"),
    ],
)
def test_what_needs_pairs_is_refused(
    options: dict, message: str, tmp_path: Path, tiny_preset: str, catalog: Catalog
) -> None:
    with pytest.raises(InputError, match=message):
        train_label_free(config(tiny_preset, **options), catalog, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"method": "distilled"}, {"warm_up": "catalog"}])
def test_one_item_is_nothing_to_learn_from(options: dict, tmp_path: Path, tiny_preset: str) -> None:
    (tmp_path / "one.csv").write_text("item_id,title,description\nk1,Kettle,\n", "utf-8")
    catalog = Catalog.read(tmp_path / "one.csv")
    with pytest.raises(InputError, match=r"one\.csv: nothing to learn from.*two items"):
        train_label_free(
            config(tiny_preset, **options), catalog, tmp_path / "run", lexical=no_words
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("eagerly")
def test_warm_up_comes_before_the_method(
    tmp_path: Path, tiny_preset: str, catalog: Catalog
) -> None:
    """Zero-shot after a warm-up: the towers that a warm-up without interactions leaves."""
    (tmp_path / "pairs.csv").write_text("query,item_id\nboil water,k1\nrake,g1\n", "utf-8")
    pairs = Interactions.read(tmp_path / "pairs.csv", catalog)
    settings = config(tiny_preset, method="zero-shot", warm_up="catalog")
    with_pairs = train(settings, catalog, pairs, tmp_path / "with")
    without = train_label_free(settings, catalog, tmp_path / "without")
    assert with_pairs["warm_up"] == without["warm_up"]
    one, two = (RunFolder.existing(tmp_path / run).load_retriever() for run in ("with", "without"))
    assert one.fingerprint() == two.fingerprint()
    assert changed(tmp_path / "with", tiny_preset)


@pytest.mark.usefixtures("eagerly")
def test_auto_starts_from_the_warm_up_where_it_was_chosen(
    tmp_path: Path, tiny_preset: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The towers that a warm-up without interactions leaves, and no others."""
    (tmp_path / "pairs.csv").write_text("query,item_id\nboil water,k1\nrake,g1\n", "utf-8")
    pairs = Interactions.read(tmp_path / "pairs.csv", catalog)

    def chosen(*_: object, warm: Callable[[], Retriever], **__: object) -> Choice:
        warm()
        return Choice("zero-shot", 0.0, 0.0, "because", 16, [], warm_up=True)

    monkeypatch.setattr(training.train, "choose_method", chosen)
    alone = config(tiny_preset, lexical="off")
    by_choice = train(alone, catalog, pairs, tmp_path / "auto", lexical=no_words)
    asked_for = config(tiny_preset, warm_up="catalog")
    assert by_choice["warm_up"] == train_label_free(asked_for, catalog, tmp_path / "w")["warm_up"]
    one, two = (RunFolder.existing(tmp_path / run).load_retriever() for run in ("auto", "w"))
    assert one.fingerprint() == two.fingerprint()
    assert by_choice["method"] == "zero-shot"


@pytest.mark.parametrize("options", [{"lexical": "off", "warm_up": "off"}, {"lexical": "auto"}])
def test_auto_tries_no_warm_up_where_words_count_or_it_is_told_not_to(
    options: dict,
    tmp_path: Path,
    tiny_preset: str,
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "pairs.csv").write_text("query,item_id\nboil water,k1\nrake,g1\n", "utf-8")
    pairs = Interactions.read(tmp_path / "pairs.csv", catalog)
    told = list[object]()

    def chosen(*_: object, warm: object, **__: object) -> Choice:
        told.append(warm)
        return Choice("zero-shot", 0.0, 0.5, "because", 16, [])

    monkeypatch.setattr(training.train, "choose_method", chosen)
    train(config(tiny_preset, **options), catalog, pairs, tmp_path / "run", lexical=no_words)
    assert told == [None]


@pytest.mark.parametrize("method", ["full", "linear"])
def test_pairs_of_one_item_are_nothing_to_learn_from(
    method: str, tmp_path: Path, tiny_preset: str, catalog: Catalog
) -> None:
    (tmp_path / "pairs.csv").write_text("query,item_id\nboil water,k1\nhot,k1\n", "utf-8")
    pairs = Interactions.read(tmp_path / "pairs.csv", catalog)
    with pytest.raises(InputError, match=r"nothing to learn from: all 2 pairs.*zero-shot"):
        train(config(tiny_preset, method=method), catalog, pairs, tmp_path / "run")
    with pytest.raises(InputError, match=r"nothing to learn from: the only pair"):
        train(config(tiny_preset, method=method, shots=1), catalog, pairs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_leaves_the_towers_alone_where_there_is_nothing_to_learn(
    tmp_path: Path, tiny_preset: str, catalog: Catalog
) -> None:
    rows = "".join(f"query {n},k1\n" for n in range(6))
    (tmp_path / "pairs.csv").write_text(f"query,item_id\n{rows}", "utf-8")
    pairs = Interactions.read(tmp_path / "pairs.csv", catalog)
    metrics = train(config(tiny_preset), catalog, pairs, tmp_path / "run")
    assert metrics["method"] == "zero-shot"
    assert "of different items" in metrics["choice"]["reason"]
