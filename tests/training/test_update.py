"""A run that goes on from another, with the tiny encoder.

Each item has a word of its own that its queries hold. The first run learns the words of four items,
the update those of the four others.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest

from towers.errors import InputError
from towers.retriever import Retriever
from training.catalog import Catalog
from training.config import TrainConfig
from training.interactions import Interactions
from training.run_folder import RunFolder
from training.train import render_items, train
from training.update import UpdateRefused, read_update_config, update

WORDS = ["boils", "slow", "lid", "holds", "steel", "hose", "cat", "torch"]
FILLERS = ["water", "fast", "coffee", "hot", "red", "ash", "sofa", "safety", "garden", "mug"]
FIT = {"epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "min_held_out": 4}


def write_pairs(path: Path, ids: list[str], items: range, per_item: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    lines = ["query,item_id,grade,weight"]
    for item in items:
        for n in range(per_item):
            filler = " ".join(rng.choice(FILLERS, 2, replace=False))
            lines.append(f"{filler} {WORDS[item]} {n},{ids[item]},{1 + n % 2},{1 + n % 3}")
            lines.append(f"{filler} {WORDS[item]} {n},{ids[(item + 1) % 8]},0,1")
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    rows = zip(*tiny_catalog.values(), strict=True)
    lines = [",".join(tiny_catalog), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    (folder / "catalog.csv").write_text("\n".join(lines), "utf-8")
    ids = tiny_catalog["item_id"]
    write_pairs(folder / "old.csv", ids, range(4), 8, seed=0)
    write_pairs(folder / "new.csv", ids, range(4, 8), 6, seed=1)
    write_pairs(folder / "later.csv", ids, range(2, 6), 5, seed=2)
    return folder


def read(shop: Path, name: str) -> Interactions:
    return Interactions.read(shop / name, Catalog.read(shop / "catalog.csv"))


@pytest.fixture(scope="module")
def first(shop: Path, tiny_preset: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run to go on from."""
    encoder = {"preset": tiny_preset, "query_max_length": 12, "item_max_length": 24}
    config = TrainConfig.read(None, method="full", encoder=encoder, fit={**FIT, "held_out": 0.2})
    old = read(shop, "old.csv")
    output = tmp_path_factory.mktemp("runs") / "first"
    train(config, old.catalog, old, output)
    return RunFolder.existing(output)


def config_of(parent: RunFolder, **options: Any) -> TrainConfig:
    settings = {"max_drop": 1.0, **options.pop("update", {})}
    return read_update_config(parent, update=settings, **options)


@pytest.fixture(scope="module")
def second(
    shop: Path, first: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, dict[str, Any]]:
    """An update of it, and what that measured."""
    output = tmp_path_factory.mktemp("runs") / "second"
    new = read(shop, "new.csv")
    before = contents(first.path)
    metrics = update(first, config_of(first), new.catalog, new, output)
    assert contents(first.path) == before  # whatever happens to the new one
    return RunFolder.existing(output), metrics


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ndcg(retriever: Retriever, judgements: Interactions, queries: list[str]) -> float:
    """Mean nDCG@10 over the whole catalogue by another library."""
    catalog = judgements.catalog
    items = retriever.encode_items(render_items(retriever.template, catalog))
    scores = retriever.encode_queries(queries) @ items.T
    qrels = {query: judgements.qrels()[query] for query in queries}
    run = {
        query: dict(zip(catalog.item_ids.tolist(), row.tolist(), strict=True))
        for query, row in zip(queries, scores, strict=True)
    }
    measure = ir_measures.nDCG @ 10
    return ir_measures.calc_aggregate([measure], qrels, run)[measure]


def test_an_update_learns_the_new_and_says_what_it_did(
    shop: Path, first: RunFolder, second: tuple[RunFolder, dict[str, Any]]
) -> None:
    run, metrics = second
    assert json.loads((run.path / "metrics.json").read_text("utf-8")) == metrics
    facts = metrics["update"]
    old, new = read(shop, "old.csv"), read(shop, "new.csv")
    # 32 old queries, 24 new ones, a fifth of each held out; one positive a query.
    assert (facts["remembered_pairs"], facts["new_pairs"]) == (26, 19)
    assert (facts["replayed_pairs"], metrics["shots"]) == (19, 38)
    assert metrics["fit"]["pairs"] == 38

    held_out = run.held_out(old.catalog)
    asked = {"old": [], "new": []}
    for query in held_out.queries:
        asked["old" if query in old.queries else "new"].append(query)
    assert (len(asked["old"]), len(asked["new"])) == (6, 5)
    before, after = first.load_retriever(), run.load_retriever()
    for name, queries in asked.items():
        found = facts["held_out"][name]
        assert found["queries"] == len(queries)
        assert found["before"] == pytest.approx(ndcg(before, held_out, queries), abs=2e-3)
        assert found["after"] == pytest.approx(ndcg(after, held_out, queries), abs=2e-3)
        assert found["difference"] == pytest.approx(found["after"] - found["before"])
        low, high = found["interval_95"]
        assert low <= found["difference"] <= high
    assert facts["held_out"]["new"]["difference"] > 0.1
    assert facts["gate"]["difference"] == facts["held_out"]["old"]["difference"]
    assert facts["gate"]["passed"]
    assert facts["share"] > 0

    # The run remembers all it was taught, and not what it is asked.
    shots = run.shots(old.catalog)
    expected = {
        (query, item): grade
        for judged in (old, new)
        for query, items in judged.qrels().items()
        for item, grade in items.items()
        if grade and query not in held_out.queries
    }
    found = {
        (q, item): grade for q, items in shots.qrels().items() for item, grade in items.items()
    }
    assert found == expected
    assert set(shots.weight.tolist()) == {1.0, 2.0, 3.0}
    parent = json.loads((run.path / "run.json").read_text("utf-8"))["parent"]
    assert parent == {
        "path": str(first.path),
        "id": first.run_id,
        "fingerprint": before.fingerprint(),
    }
    assert run.config.update.max_drop == 1.0
    assert run.config.encoder == first.config.encoder
    assert not (run.path / "checkpoints").exists()


def test_a_first_run_remembers_what_it_held_out(shop: Path, first: RunFolder) -> None:
    old = read(shop, "old.csv")
    held_out = first.held_out(old.catalog)
    assert len(held_out.queries) == 6
    assert held_out.qrels().items() <= old.qrels().items()  # judged negatives with them


def test_what_is_held_out_stays_held_out(
    shop: Path, second: tuple[RunFolder, dict[str, Any]], tmp_path: Path
) -> None:
    """A week later the first item is gone, and there is a new one."""
    run, _ = second
    lines = (shop / "catalog.csv").read_text("utf-8").splitlines()
    (tmp_path / "catalog.csv").write_text(
        "\n".join([lines[0], *lines[2:], "n1,Tea pot,,"]), "utf-8"
    )
    (tmp_path / "later.csv").write_bytes((shop / "later.csv").read_bytes())
    later = read(tmp_path, "later.csv")
    gone = int((run.shots(read(shop, "old.csv").catalog).item_row == 0).sum())
    metrics = update(run, config_of(run), later.catalog, later, tmp_path / "third")
    third = RunFolder.existing(tmp_path / "third")
    before, after = run.held_out(later.catalog), third.held_out(later.catalog)
    assert set(before.queries) < set(after.queries)
    assert not set(after.queries) & set(third.shots(later.catalog).queries)
    # Some are left with a judged negative alone.
    asked = before.positives().queries
    assert metrics["update"]["held_out"]["old"]["queries"] == len(asked)
    assert metrics["update"]["remembered_pairs"] == len(run.shots(later.catalog))
    assert metrics["update"]["lost_pairs"] == gone > 0


@pytest.mark.usefixtures("eagerly")
def test_a_version_that_forgets_is_refused(shop: Path, first: RunFolder, tmp_path: Path) -> None:
    """A rate that ruins the towers: nothing of what they knew is left."""
    new = read(shop, "new.csv")
    before = contents(first.path)
    config = config_of(
        first,
        fit={"learning_rate": 3.0, "epochs": 2},
        update={"max_drop": 0.005, "replay": 0.0, "anchor": 0.0},
    )
    with pytest.raises(UpdateRefused, match=r"would go from .* 0\.005 is allowed") as refused:
        update(first, config, new.catalog, new, tmp_path / "second")
    gate = refused.value.metrics["update"]["gate"]
    assert not gate["passed"]
    assert gate["after"] < gate["before"] - 0.005
    assert f"{gate['before']:.4f} to {gate['after']:.4f}" in str(refused.value)
    assert not (tmp_path / "second").exists()
    assert contents(first.path) == before


def test_an_evaluation_is_not_learned_from_and_an_interrupted_update_goes_on(
    shop: Path, first: RunFolder, tmp_path: Path
) -> None:
    new, evaluation = read(shop, "new.csv"), read(shop, "old.csv")
    some = evaluation.select_queries(np.arange(0, 32, 4))
    config = config_of(first, fit={"epochs": 2}, seed=3)

    def stop(name: str, done: int, total: int) -> None:
        if name == "Training" and done > total // 2:
            raise KeyboardInterrupt

    def run(name: str, **options: Any) -> dict[str, Any]:
        output = tmp_path / name
        return update(first, config, new.catalog, new, output, judgements=some, **options)

    with pytest.raises(KeyboardInterrupt):
        run("stopped", progress=stop)
    assert not RunFolder(tmp_path / "stopped").is_finished
    whole, resumed = run("whole"), run("stopped")
    for metrics in (whole, resumed):
        del metrics["fit"]["seconds"]
    assert whole == resumed
    towers = [RunFolder.existing(tmp_path / name).load_retriever() for name in ("whole", "stopped")]
    for a, b in zip(*(retriever.model.get_weights() for retriever in towers), strict=True):
        np.testing.assert_array_equal(a, b)

    gate = whole["update"]["gate"]
    assert (gate["on"], gate["queries"]) == (f"queries of {shop / 'old.csv'}", 8)
    held_out = first.held_out(new.catalog)
    old_asked = {*held_out.queries, *some.queries}
    assert whole["update"]["held_out"]["old"]["queries"] == len(old_asked)
    assert gate["before"] == pytest.approx(
        ndcg(first.load_retriever(), some, some.queries), abs=2e-3
    )
    assert gate["after"] == pytest.approx(ndcg(towers[0], some, some.queries), abs=2e-3)
    shots = RunFolder(tmp_path / "whole").shots(new.catalog)
    assert not set(shots.queries) & old_asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "linear"}, "an update goes on by full, lora.*not by linear"),
        ({"encoder": {"pooling": "cls"}}, "an update keeps the towers of its run"),
        ({"shots": 8}, "leave shots and warm_up out"),
        ({"min_grade": 3}, "no positive pair"),
        ({"update": {"measure": "Coverage@10"}}, "no value for a single query"),
        ({"update": {"measure": "nDGC@10"}}, "unknown measure"),
        ({"update": {"max_drop": -1.0}}, "update.max_drop"),
        ({"fit": {"min_held_out": 7}}, "knows 6 old queries that it was not.*give --judgements"),
    ],
)
def test_what_cannot_work_leaves_no_folder(
    options: dict[str, Any], message: str, shop: Path, first: RunFolder, tmp_path: Path
) -> None:
    new = read(shop, "new.csv")
    with pytest.raises(InputError, match=message):
        update(first, config_of(first, **options), new.catalog, new, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_an_update_is_not_trained_anew(
    shop: Path, second: tuple[RunFolder, dict[str, Any]], tmp_path: Path
) -> None:
    old = read(shop, "old.csv")
    with pytest.raises(InputError, match=r"has a table \[update\]"):
        train(second[0].config, old.catalog, old, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_configuration_is_the_runs_with_changes_over_it(tmp_path: Path) -> None:
    def parent(**options: Any) -> RunFolder:
        config = TrainConfig.read(None, **options)
        (tmp_path / "config.json").write_text(config.model_dump_json())
        return RunFolder(tmp_path)

    run = parent(method="lora", shots=64, lexical=0.3, fit={"rank": 4, "learning_rate": 0.01})
    config = read_update_config(run)
    assert (config.method, config.shots, config.lexical) == ("lora", None, 0.3)
    assert (config.fit.rank, config.fit.learning_rate) == (4, 0.01)
    assert config.update is not None
    (tmp_path / "changes.toml").write_text('method = "full"\n[update]\nreplay = 2\n')
    config = read_update_config(run, str(tmp_path / "changes.toml"), update={"max_drop": 0.1})
    assert (config.update.replay, config.update.max_drop) == (2, 0.1)
    assert config.fit.learning_rate is None  # it was LoRA's
    for method in ("auto", "zero-shot", "linear", "distilled"):
        assert read_update_config(parent(method=method)).method == "full"
