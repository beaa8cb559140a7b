from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from towers.errors import InputError
from towers.retriever import Retriever
from training.catalog import Catalog
from training.config import TrainConfig
from training.histories import Histories
from training.interactions import Interactions
from training.run_folder import RunFolder


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "catalog.csv").write_text('item_id,title\na,"Mug, red"\nb,Kettle\n', "utf-8")
    return Catalog.read(tmp_path / "catalog.csv")


@pytest.fixture
def pairs(tmp_path: Path, catalog: Catalog) -> Interactions:
    text = 'query,item_id,grade\n"cup, ""big""",a,2\ntea,b,1\ntea,a,0\n'
    (tmp_path / "pairs.csv").write_text(text, "utf-8")
    return Interactions.read(tmp_path / "pairs.csv", catalog)


def test_a_new_run_records_its_inputs(
    tmp_path: Path, catalog: Catalog, pairs: Interactions
) -> None:
    config = TrainConfig.read(None, seed=5)
    run = RunFolder.open(tmp_path / "deep" / "run", config, catalog, pairs)
    assert run.config == config
    assert not run.is_finished
    record = json.loads((run.path / "run.json").read_text("utf-8"))
    assert record["data"]["catalog"]["sha256"] == catalog.sha256
    assert record["data"]["interactions"] == {"path": pairs.path, "sha256": pairs.sha256}
    assert record["packages"]["keras"].startswith("3.")
    assert record["id"] == run.run_id
    assert record["started"].endswith("+00:00")


def test_an_interrupted_run_is_taken_up(
    tmp_path: Path, catalog: Catalog, pairs: Interactions
) -> None:
    first = RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs)
    before = (first.path / "run.json").read_bytes()
    (first.path / "checkpoints").mkdir()
    (first.path / "config.json").unlink()  # killed before it was written
    again = RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs)
    assert (again.path / "run.json").read_bytes() == before
    assert again.config == TrainConfig()


def test_the_same_data_under_other_names_are_the_same_run(
    tmp_path: Path, catalog: Catalog, pairs: Interactions
) -> None:
    run = RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs)
    (tmp_path / "moved.csv").write_bytes((tmp_path / "catalog.csv").read_bytes())
    moved = Catalog.read(tmp_path / "moved.csv")
    assert RunFolder.open(tmp_path / "run", TrainConfig(), moved, pairs).run_id == run.run_id


def test_a_run_of_other_inputs_is_refused(
    tmp_path: Path, catalog: Catalog, pairs: Interactions
) -> None:
    RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs)
    with pytest.raises(InputError, match="an unfinished run of other data or settings"):
        RunFolder.open(tmp_path / "run", TrainConfig(seed=1), catalog, pairs)
    (tmp_path / "catalog.csv").write_text("item_id,title\na,Cup\nb,Kettle\n", "utf-8")
    other = Catalog.read(tmp_path / "catalog.csv")
    with pytest.raises(InputError, match="an unfinished run of other data or settings"):
        RunFolder.open(tmp_path / "run", TrainConfig(), other, pairs)


def test_a_run_of_other_histories_is_refused(
    tmp_path: Path, catalog: Catalog, pairs: Interactions
) -> None:
    def histories(items: str) -> Histories:
        (tmp_path / "users.jsonl").write_text(f'{{"user_id": "u", "items": {items}}}\n', "utf-8")
        return Histories.read(tmp_path / "users.jsonl", catalog)

    first = histories('["a", "b"]')
    run = RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs, first)
    record = json.loads((run.path / "run.json").read_text("utf-8"))
    assert record["data"]["histories"]["sha256"] == first.sha256
    assert RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs, first) == run
    for other in (histories('["b", "a"]'), None):
        with pytest.raises(InputError, match="an unfinished run of other data or settings"):
            RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs, other)


def test_folders_with_other_things_are_refused(
    tmp_path: Path, catalog: Catalog, pairs: Interactions
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / ".hidden").write_text("")
    assert RunFolder.open(taken, TrainConfig(), catalog, pairs).path == taken
    for path in (tmp_path, tmp_path / "catalog.csv"):
        with pytest.raises(InputError, match="exists and is no training run"):
            RunFolder.open(path, TrainConfig(), catalog, pairs)


def test_finishing(
    tmp_path: Path, catalog: Catalog, pairs: Interactions, tiny_retriever: Retriever
) -> None:
    run = RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs)
    (run.path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no finished training run"):
        RunFolder.existing(run.path)
    run.finish(tiny_retriever, pairs.positives(), {"fit": None, "größe": 1})
    assert run.is_finished
    assert json.loads((run.path / "metrics.json").read_text("utf-8")) == {"fit": None, "größe": 1}
    assert not (run.path / "checkpoints").exists()
    assert not list(run.path.glob(".*"))

    shots = Interactions.read(run.path / "shots.csv", catalog)
    assert shots.queries == ['cup, "big"', "tea"]
    assert shots.grade.tolist() == [2, 1]
    assert shots.item_row.tolist() == [0, 1]

    found = RunFolder.existing(run.path)
    np.testing.assert_array_equal(
        found.load_retriever().encode_items(["red mug"]), tiny_retriever.encode_items(["red mug"])
    )
    with pytest.raises(InputError, match="holds a finished run"):
        RunFolder.open(run.path, TrainConfig(), catalog, pairs)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        RunFolder.existing(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no finished training run"):
        RunFolder.existing(tmp_path)


@pytest.mark.parametrize(
    ("metrics", "weight"),
    [
        ('{"fit": null}', 0.0),  # of a version without a lexical score
        ('{"lexical": {"weight": 0.4, "reason": "so"}}', 0.4),
        ('{"lexical": {"weight": 1}}', 1.0),
    ],
)
def test_the_lexical_weight(tmp_path: Path, metrics: str, weight: float) -> None:
    (tmp_path / "metrics.json").write_text(metrics, "utf-8")
    assert RunFolder.existing(tmp_path).lexical_weight == weight


@pytest.mark.parametrize(
    "metrics",
    ['{"lexical": {}}', '{"lexical": null}', '{"lexical": {"weight": "much"}}', "{", "3"],
)
def test_damaged_metrics(tmp_path: Path, metrics: str) -> None:
    (tmp_path / "metrics.json").write_text(metrics, "utf-8")
    with pytest.raises(InputError, match=r"metrics\.json is damaged: .*--lexical"):
        _ = RunFolder.existing(tmp_path).lexical_weight


def test_a_discarded_run_leaves_room_for_another(
    tmp_path: Path, catalog: Catalog, pairs: Interactions
) -> None:
    run = RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs)
    for name in ("checkpoints", "tensorboard", "model"):
        (run.path / name / "deep").mkdir(parents=True)
        (run.path / name / "deep" / "file").write_text("")
    (run.path / "shots.csv").write_text("")  # killed while it was being finished
    run.discard()
    assert not run.path.exists()
    other = RunFolder.open(tmp_path / "run", TrainConfig(seed=1), catalog, pairs)
    assert other.config.seed == 1


def test_discarding_removes_the_runs_own_files_only(
    tmp_path: Path, catalog: Catalog, pairs: Interactions, tiny_retriever: Retriever
) -> None:
    run = RunFolder.open(tmp_path / "run", TrainConfig(), catalog, pairs)
    (run.path / "notes.txt").write_text("mine")
    run.discard()
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]

    finished = RunFolder.open(tmp_path / "finished", TrainConfig(), catalog, pairs)
    finished.finish(tiny_retriever, pairs.positives(), {})
    with pytest.raises(ValueError, match="holds a finished run"):
        finished.discard()
    assert finished.load_retriever().embedding_dim == 32
