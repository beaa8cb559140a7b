"""A search: its trials, what it writes, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from towers.errors import InputError
from training import tuning
from training.catalog import Catalog
from training.config import FitConfig, TrainConfig
from training.fit import FitResult
from training.interactions import Interactions
from training.search_space import SearchSpace
from training.train import train
from training.tuning import tune

pytest.importorskip("optuna")
pytest.importorskip("tomli_w")


@pytest.fixture
def pairs(tmp_path: Path, tiny_catalog: dict[str, list[str]]) -> Interactions:
    rows = list(zip(tiny_catalog["item_id"], tiny_catalog["title"], strict=True))
    (tmp_path / "catalog.csv").write_text(
        "item_id,title\n" + "".join(f'{item},"{title}"\n' for item, title in rows), "utf-8"
    )
    catalog = Catalog.read(tmp_path / "catalog.csv")
    judged = "".join(f"query {n},{item}\n" for n, (item, _) in enumerate(rows))
    (tmp_path / "pairs.csv").write_text("query,item_id\n" + judged, "utf-8")
    return Interactions.read(tmp_path / "pairs.csv", catalog)


def space(preset: str, search: dict[str, Any], **fit: Any) -> SearchSpace:
    encoder = {"preset": preset, "query_max_length": 12, "item_max_length": 24}
    return SearchSpace.parse({"encoder": encoder, "fit": fit, "search": search}, "s.toml")


class Knowing:
    """Towers that find the right item of a query as often as they are skilled."""

    def __init__(self, pairs: Interactions, skill: float) -> None:
        self.pairs, self.skill = pairs, skill

    def encode_items(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        return np.eye(len(texts), dtype=np.float32)

    def encode_queries(self, queries: Sequence[str], **_: Any) -> np.ndarray:
        vectors = np.zeros((len(queries), len(self.pairs.catalog)), np.float32)
        for row, query in enumerate(queries):
            vectors[row, int(query.split()[1])] = self.skill  # the pool has all items in order
            vectors[row, (int(query.split()[1]) + 1) % 8] = 0.5
        return vectors


@pytest.fixture
def skilled(monkeypatch: pytest.MonkeyPatch, pairs: Interactions) -> list[tuple[set[str], float]]:
    """Training whose towers know every answer if their weight decay is above .5."""
    calls: list[tuple[set[str], float]] = []

    def adapt(retriever: Any, part: Interactions, texts: Any, config: FitConfig, **_: Any) -> Any:
        calls.append((set(part.queries), config.weight_decay))
        if config.epochs == 9:
            raise InputError("training diverged")
        return FitResult(Knowing(pairs, 1.0 if config.weight_decay > 0.5 else 0.1))

    monkeypatch.setattr(tuning, "adapt", adapt)
    return calls


def test_the_best_is_found_and_written(
    tmp_path: Path, tiny_preset: str, pairs: Interactions, skilled: list[tuple[set[str], float]]
) -> None:
    search = space(tiny_preset, {"fit": {"weight_decay": {"low": 0.0, "high": 1.0}}}, epochs=1)
    told: list[dict[str, Any]] = []
    bar: list[tuple[int, int]] = []
    output = tmp_path / "search"
    result = tune(
        search,
        pairs.catalog,
        pairs,
        output,
        trials=6,
        told=told.append,
        progress=lambda *step: bar.append(step),
    )
    assert result == json.loads((output / "search.json").read_text("utf-8"))
    assert bar == [(n, 6) for n in range(7)]
    assert result["trials"] == told
    assert told[0]["fields"] == {"fit.weight_decay": 0.01}  # the configuration as it stands
    # Two folds of a trial: each query is left out of one training.
    for one, two in zip(skilled[::2], skilled[1::2], strict=True):
        assert one[1] == two[1]
        assert len(one[0]) == len(two[0]) == 4
        assert not one[0] & two[0]
    for trial in told:
        high = trial["fields"]["fit.weight_decay"] > 0.5
        # The right item first, or second: 1 / log2(3).
        assert trial["ndcg"] == pytest.approx(1.0 if high else 1 / np.log2(3))
    assert result["best"]["ndcg"] == 1
    assert (result["queries"], result["best"]["lexical_weight"]) == (8, 0)

    best = TrainConfig.read(output / "best.toml")
    assert best.fit.weight_decay == result["best"]["fields"]["fit.weight_decay"]
    assert (best.method, best.fit.epochs) == ("full", 1)

    again = tune(search, pairs.catalog, pairs, output, trials=8)
    assert again["trials"][:6] == told
    assert len({trial["fields"]["fit.weight_decay"] for trial in again["trials"]}) == 8
    other = space(tiny_preset, {"fit": {"weight_decay": [0.0, 1.0]}})
    with pytest.raises(InputError, match="a search of other data, settings or fields"):
        tune(other, pairs.catalog, pairs, output)


def test_trials_that_cannot_train_are_told_and_left_out(
    tmp_path: Path, tiny_preset: str, pairs: Interactions, skilled: list[tuple[set[str], float]]
) -> None:
    search = space(tiny_preset, {"fit": {"epochs": [2, 9]}}, epochs=9)
    told: list[dict[str, Any]] = []
    result = tune(search, pairs.catalog, pairs, tmp_path / "search", trials=8, told=told.append)
    assert (told[0]["refused"], told[0]["ndcg"]) == ("training diverged", None)
    assert result["best"]["fields"] == {"fit.epochs": 2}
    with pytest.raises(InputError, match=r"no trial could be trained.*diverged"):
        tune(search, pairs.catalog, pairs, tmp_path / "other", trials=1)


def test_too_few_queries(tmp_path: Path, tiny_preset: str, pairs: Interactions) -> None:
    three = pairs.select_queries([0, 1, 2])
    search = space(tiny_preset, {"fit": {"epochs": [1, 2]}})
    with pytest.raises(InputError, match=r"four queries or more are needed.*there are 3"):
        tune(search, pairs.catalog, three, tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_a_folder_of_other_things_is_left_alone(
    tmp_path: Path, tiny_preset: str, pairs: Interactions
) -> None:
    search = space(tiny_preset, {"fit": {"epochs": [1, 2]}})
    with pytest.raises(InputError, match="exists and is no search"):
        tune(search, pairs.catalog, pairs, tmp_path)


def test_a_search_over_real_training(tmp_path: Path, tiny_preset: str, pairs: Interactions) -> None:
    """The linear map is quick, and best.toml trains."""
    search = space(tiny_preset, {"method": ["linear", "zero-shot"]})
    output = tmp_path / "search"
    result = tune(search, pairs.catalog, pairs, output, trials=4)
    by_method = {trial["fields"]["method"]: trial["ndcg"] for trial in result["trials"]}
    if "zero-shot" in by_method:
        assert by_method["zero-shot"] == pytest.approx(result["zero_shot_ndcg"])
    config = TrainConfig.read(output / "best.toml")
    assert train(config, pairs.catalog, pairs, tmp_path / "run")["method"] == config.method
