"""A whole run, from configuration and data to the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from towers.errors import InputError
from towers.item_text import ItemTemplate
from towers.retriever import Retriever
from training.catalog import Catalog
from training.config import TrainConfig
from training.interactions import Interactions
from training.lexical_weight import LexicalScorer
from training.run_folder import RunFolder
from training.shots import draw_shots
from training.train import LexicalIndexer, render_items, train

ENCODER = {"query_max_length": 12, "item_max_length": 24}


@pytest.fixture
def catalog(tmp_path: Path, tiny_catalog: dict[str, list[str]]) -> Catalog:
    rows = zip(*tiny_catalog.values(), strict=True)
    lines = [",".join(tiny_catalog), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    (tmp_path / "catalog.csv").write_text("\n".join(lines), "utf-8")
    return Catalog.read(tmp_path / "catalog.csv")


@pytest.fixture
def pairs(tmp_path: Path, catalog: Catalog) -> Interactions:
    lines = ["query,item_id,grade"]
    for n in range(20):
        lines.append(f"query {n},{catalog.item_ids[n % 8]},{1 + n % 3}")
        lines.append(f"query {n},{catalog.item_ids[(n + 1) % 8]},0")
    (tmp_path / "pairs.csv").write_text("\n".join(lines), "utf-8")
    return Interactions.read(tmp_path / "pairs.csv", catalog)


def test_a_whole_run(
    tmp_path: Path, tiny_preset: str, catalog: Catalog, pairs: Interactions
) -> None:
    config = TrainConfig.read(
        None,
        method="full",
        shots=12,
        min_grade=2,
        seed=4,
        encoder={"preset": tiny_preset, **ENCODER},
        fit={"epochs": 1, "batch_size": 6, "learning_rate": 1e-3},
    )
    steps: list[tuple[str, int, int]] = []
    metrics = train(
        config,
        catalog,
        pairs,
        tmp_path / "run",
        progress=lambda *step: steps.append(step),
    )
    # 12 pairs in batches of 6, once
    assert steps == [("Training", 1, 2), ("Training", 2, 2)]
    assert metrics["method"] == "full"
    assert (metrics["items"], metrics["shots"], metrics["shot_queries"]) == (8, 12, 12)
    fit = metrics["fit"]
    assert (fit["pairs"], fit["held_out"], fit["held_out_queries"]) == (12, [], 0)
    assert (fit["best_epoch"], len(fit["losses"])) == (1, 1)
    run = RunFolder.existing(tmp_path / "run")
    assert json.loads((run.path / "metrics.json").read_text("utf-8")) == metrics
    assert run.config == config

    shots = Interactions.read(run.path / "shots.csv", catalog)
    expected = draw_shots(pairs, 12, seed=4, min_grade=2)
    assert shots.qrels() == expected.qrels()
    assert min(shots.grade) == 2

    trained = run.load_retriever()
    untrained = Retriever.from_preset(tiny_preset, text=trained.text)
    assert trained.text.item_template == "{title}[ {brand}][ {description}]"
    assert (trained.text.query_max_length, trained.text.item_max_length) == (12, 24)
    assert trained.fingerprint() != untrained.fingerprint()

    with pytest.raises(InputError, match="holds a finished run"):
        train(config, catalog, pairs, tmp_path / "run")


def test_a_run_can_be_repeated_from_its_folder(
    tmp_path: Path, tiny_preset: str, catalog: Catalog, pairs: Interactions
) -> None:
    config = TrainConfig.read(
        None,
        method="zero-shot",
        shots=7,
        seed=9,
        encoder={"preset": tiny_preset, "projection_dim": 8, "shared": False, **ENCODER},
    )
    metrics = train(config, catalog, pairs, tmp_path / "first")
    assert metrics["fit"] is None
    again = TrainConfig.read(tmp_path / "first" / "config.json")
    train(again, catalog, pairs, tmp_path / "second")
    for name in ("shots.csv", "config.json", "metrics.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    first, second = (RunFolder.existing(tmp_path / name) for name in ("first", "second"))
    assert first.run_id == second.run_id
    assert first.load_retriever().fingerprint() == second.load_retriever().fingerprint()
    other = again.model_copy(update={"seed": 10})
    train(other, catalog, pairs, tmp_path / "third")
    shots = [(tmp_path / name / "shots.csv").read_bytes() for name in ("first", "third")]
    assert shots[0] != shots[1]


def words_of_titles(template: ItemTemplate, catalog: Catalog) -> LexicalScorer:
    """1 for the item whose number among eight is the query's, as `pairs` has it."""
    assert template.pattern == "{title}[ {brand}][ {description}]"

    def scores(queries: Sequence[str]) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[[int(query.split()[1]) % 8 for query in queries]]

    return scores


def test_the_lexical_weight_is_chosen_with_the_shots(
    tmp_path: Path, tiny_preset: str, catalog: Catalog, pairs: Interactions
) -> None:
    encoder = {"preset": tiny_preset, **ENCODER}
    fit = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-4}

    def run(name: str, words: LexicalIndexer | None = None, **options: Any) -> dict[str, Any]:
        config = TrainConfig.read(None, encoder=encoder, fit=fit, **options)
        told: list[tuple[int, int]] = []
        found = train(
            config,
            catalog,
            pairs,
            tmp_path / name,
            lexical=words,
            progress=lambda name, *step: told.append(step) if "lexical" in name else None,
        )["lexical"]
        assert RunFolder.existing(tmp_path / name).lexical_weight == found["weight"]
        assert (told[-1][0] == told[-1][1]) if found["queries"] else not told
        return found

    for method in ("zero-shot", "full"):
        found = run(method, words_of_titles, method=method)
        assert found["weight"] > 0.25  # these words know the answers
        assert (found["queries"], found["candidates"]) == (20, 8)
        assert found["ndcg"]["1"] == 1
        assert "nDCG@10 on 20 shot queries among 8 items" in found["reason"]
        assert ("before training" in found["reason"]) == (method == "full")
    assert run("eight", words_of_titles, method="zero-shot", shots=8)["queries"] == 8
    assert run("told", words_of_titles, method="zero-shot", lexical=0.3)["weight"] == 0.3
    assert run("off", words_of_titles, method="zero-shot", lexical="off")["weight"] == 0
    assert run("no words", method="zero-shot")["weight"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 999}, "cannot draw 999 shots"),
        ({"min_grade": 4}, "no positive pair"),
        ({"encoder": {"item_template": "{colour}"}}, "no text column .colour.; there are"),
        ({"encoder": {"item_template": "title"}}, "names no column"),
        ({"encoder": {"preset": "./nothing"}}, "is not a folder with a checkpoint"),
        ({"encoder": {"item_max_length": 65}}, "over the encoder's 64 positions"),
    ],
)
def test_what_cannot_work_leaves_no_folder(
    options: dict,
    message: str,
    tmp_path: Path,
    tiny_preset: str,
    catalog: Catalog,
    pairs: Interactions,
) -> None:
    encoder = {"preset": tiny_preset, **ENCODER, **options.pop("encoder", {})}
    config = TrainConfig.read(None, encoder=encoder, **options)
    with pytest.raises(InputError, match=message):
        train(config, catalog, pairs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_item_texts(catalog: Catalog) -> None:
    texts = render_items(ItemTemplate("{title}[ by {brand}]"), catalog)
    assert texts[0] == "Electric kettle 1.7 l by Harrow"
    assert texts[3] == "Red mug"  # an empty cell is no brand
    assert np.array(texts).shape == (8,)


@pytest.mark.usefixtures("eagerly")
def test_auto_tells_what_it_tried_and_keeps_what_it_chose(
    tmp_path: Path, tiny_preset: str, catalog: Catalog, pairs: Interactions
) -> None:
    """Words that know every answer leave nothing to gain: zero-shot, and a heavy lexical weight."""
    told: list[tuple[int, int]] = []
    metrics = train(
        TrainConfig.read(None, encoder={"preset": tiny_preset, **ENCODER}, fit={"epochs": 1}),
        catalog,
        pairs,
        tmp_path / "run",
        lexical=words_of_titles,
        progress=lambda name, *step: told.append(step) if "method" in name else None,
    )
    choice = metrics["choice"]
    assert [trial["method"] for trial in choice["trials"]] == [
        *("zero-shot", "linear", "full", "full")
    ]
    assert choice["queries"] == 20
    assert choice["trials"][0]["ndcg"] == pytest.approx(1)
    assert (metrics["method"], metrics["fit"]) == ("zero-shot", None)
    assert metrics["lexical"]["weight"] == choice["lexical_weight"] > 0.3
    assert metrics["lexical"]["reason"] == "chosen with the method, on 20 held-out queries"
    assert told[-1][0] == told[-1][1]
    run = RunFolder.existing(tmp_path / "run")
    untrained = Retriever.from_preset(tiny_preset, text=run.load_retriever().text)
    assert run.load_retriever().fingerprint() == untrained.fingerprint()
    assert not (run.path / "checkpoints").exists()


@pytest.mark.usefixtures("eagerly")
def test_auto_trains_on_all_shots_what_it_chose(
    tmp_path: Path,
    tiny_preset: str,
    catalog: Catalog,
    pairs: Interactions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.auto.expected_gain", lambda differences: (0.1, 0.0))
    config = TrainConfig.read(
        None, encoder={"preset": tiny_preset, **ENCODER}, fit={"epochs": 1, "held_out": 0.5}
    )
    metrics = train(config, catalog, pairs, tmp_path / "run")
    assert metrics["method"] == "linear"  # the first of equals
    assert metrics["fit"]["pairs"] == 20
    assert metrics["lexical"]["weight"] == 0
