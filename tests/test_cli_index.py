"""`towers index` and `towers rollback` on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from serving.export import export_retriever
from serving.loading import load_export
from towers import Retriever


@pytest.fixture(scope="module")
def exported(
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    base = tmp_path_factory.mktemp("models") / "shop"
    export_retriever(
        tiny_retriever,
        tiny_catalog["item_id"],
        tiny_retriever.template.render(tiny_catalog),
        base,
        lexical_weight=0.4,
        lexical_fields={name: tiny_catalog[name] for name in ("title", "brand", "description")},
        columns={"brand": tiny_catalog["brand"]},
    )
    return base


@pytest.fixture
def shop(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "shop"))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes lines to a CSV file."""

    def write(*lines: str) -> Path:
        path = tmp_path / "items.csv"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path

    return write


def _first(version: Path, query: str) -> str:
    answer = load_export(version).signatures["search"](query=tf.constant([query]))
    return answer["item_ids"].numpy()[0, 0].decode()


HEADER = "item_id,title,brand,description"


def test_items_come_change_go_and_come_back(
    shop: Path, file: Callable[..., Path], towers: Callable[..., Any]
) -> None:
    added = towers("index", "add", shop, file(HEADER, "n1,Zinc bucket,Oakfield,"))
    assert added.status == 0
    assert added.out.startswith("1 added, 0 replaced, 0 removed, 1 encoded; 9 items in version 2")
    assert _first(shop / "2", "zinc bucket") == "n1"

    changed = file(HEADER, "k1,Copper teapot,Harrow,")
    replaced = towers("index", "replace", shop, changed, "--json")
    facts = json.loads(replaced.out)
    assert (facts["version"], facts["replaced"], facts["item_count"]) == (3, 1, 9)
    assert facts["path"] == str(shop / "3")
    assert _first(shop / "3", "copper teapot") == "k1"

    removed = towers("index", "remove", shop, file("item_id,why", "n1,sold out"), "--json")
    assert json.loads(removed.out)["item_count"] == 8
    assert _first(shop / "4", "zinc bucket") != "n1"

    back = towers("rollback", shop)
    assert back.out == f"Version 3 is back as version 5: {shop / '5'}\n"
    assert _first(shop / "5", "zinc bucket") == "n1"
    back = towers("rollback", shop, "--to", 1, "--json")
    assert json.loads(back.out) == {"path": str(shop / "6"), "version": 6, "republished": 1}


@pytest.mark.parametrize(
    ("verb", "lines", "message"),
    [
        ("add", (HEADER, "k1,Kettle,,"), "'k1' is in the export already"),
        ("add", ("item_id,title", "n1,Kettle"), "brand"),
        ("add", (HEADER, "n1,,,"), "title"),
        ("add", (HEADER, "n1,Kettle,,", "n1,Mug,,"), "ids must be unique"),
        ("replace", (HEADER, "zz,Kettle,,"), "'zz' is not in the export"),
        ("remove", ("item_id", "zz"), "'zz' is not in the export"),
        ("remove", ("id", "k1"), "item_id"),
    ],
)
def test_bad_input_publishes_nothing(
    exported: Path,
    verb: str,
    lines: tuple[str, ...],
    message: str,
    file: Callable[..., Path],
    towers: Callable[..., Any],
) -> None:
    answer = towers("index", verb, exported, file(*lines))
    assert answer.status == 2
    assert message in answer.err
    assert sorted(path.name for path in exported.iterdir()) == ["1"]


def test_no_model(tmp_path: Path, file: Callable[..., Path], towers: Callable[..., Any]) -> None:
    for words in (("index", "remove", tmp_path, file("item_id", "a")), ("rollback", tmp_path)):
        answer = towers(*words)
        assert answer.status == 2
        assert "holds no version of a model" in answer.err


def test_verify(
    shop: Path,
    file: Callable[..., Path],
    towers: Callable[..., Any],
    tiny_catalog: dict[str, list[str]],
) -> None:
    rows = zip(*tiny_catalog.values(), strict=True)
    cells = [",".join(f'"{cell}"' for cell in row) for row in rows]
    sound = towers("index", "verify", shop, "--catalog", file(",".join(tiny_catalog), *cells))
    assert sound.status == 0
    assert sound.out.endswith("No problem found\n")
    assert "Recall 1.000 on 8 openings of item texts" in sound.out

    lacking = file(",".join(tiny_catalog), *cells[1:])
    answer = towers("index", "verify", shop, "--catalog", lacking, "--sample", 2, "--json")
    assert answer.status == 1
    facts = json.loads(answer.out)
    assert (facts["version"], facts["recall"], facts["queries"]) == (1, 1.0, 2)
    assert [problem["check"] for problem in facts["problems"]] == ["orphans"]
    assert facts["problems"][0]["examples"] == ["k1"]

    none = towers("index", "verify", shop, "--queries", file("text", "mug"))
    assert (none.status, none.out) == (2, "")
    assert "query" in none.err
    assert "there are 1" in towers("index", "verify", shop, "--version", 3).err
