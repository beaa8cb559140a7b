"""Items that change: against a whole export of the changed catalogue, and against NumPy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.export import ExportResult, export_retriever
from serving.loading import load_export
from serving.manifest import Manifest
from serving.stored_items import STORE, StoredItems
from serving.update import ChangedItems, update_items
from serving.versions import new_version, version_folders
from towers import InputError, Retriever

TEMPLATE_COLUMNS = ("title", "brand", "description")
NEW = {
    "item_id": ["n1", "n2"],
    "title": ["Blue garden mug", "Kettle for coffee"],
    "brand": ["Oakfield", ""],
    "description": ["Holds coffee.", ""],
    "price": [4.5, None],
}
PRICES = [40.0, 50.0, None, 8.0, 20.0, 25.0, 30.0, 35.0]

Rows = dict[str, list[Any]]


def _export(retriever: Retriever, rows: Rows, output: Path, **options: Any) -> ExportResult:
    if options.get("lexical_weight"):
        options["lexical_fields"] = {"title": rows["title"], "brand": rows["brand"]}
    return export_retriever(
        retriever,
        rows["item_id"],
        retriever.template.render(rows),
        output,
        k=10,
        columns={"brand": rows["brand"], "price": rows["price"]},
        **options,
    )


def _changed(retriever: Retriever, rows: Rows, *, lexical: bool = True) -> ChangedItems:
    return ChangedItems(
        rows["item_id"],
        retriever.template.render(rows),
        {"title": rows["title"], "brand": rows["brand"]} if lexical else {},
        {"brand": rows["brand"], "price": rows["price"]},
    )


def _answers(path: Path) -> dict[str, tuple[Any, np.ndarray]]:
    signatures = load_export(path).signatures
    answers = {
        "search": signatures["search"](query=tf.constant(["garden mug", "kettel", "", "漢字"])),
        "similar": signatures["similar"](item_id=tf.constant(["m2", "n1", "k1"])),
    }
    return {
        name: (answer["item_ids"].numpy().tolist(), answer["scores"].numpy())
        for name, answer in answers.items()
    }


def _assert_equal_answers(path: Path, other: Path) -> None:
    got, expected = _answers(path), _answers(other)
    for name in expected:
        assert got[name][0] == expected[name][0]
        np.testing.assert_allclose(got[name][1], expected[name][1], atol=1e-5)


@pytest.fixture(scope="module")
def rows(tiny_catalog: dict[str, list[str]]) -> Rows:
    return {**tiny_catalog, "price": PRICES}


@pytest.fixture(scope="module")
def hybrid(tiny_retriever: Retriever, rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("exported") / "shop"
    _export(tiny_retriever, rows, base, lexical_weight=0.4, run_id="run 7")
    return base


@pytest.fixture
def shop(hybrid: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hybrid, tmp_path / "shop"))


def test_changes_equal_an_export_of_the_changed_catalogue(
    shop: Path, tiny_retriever: Retriever, rows: Rows, tmp_path: Path
) -> None:
    replacing = {name: [values[6], values[1]] for name, values in rows.items()}
    replacing["title"] = ["Dog basket", rows["title"][1]]  # the second: a new price alone
    replacing["price"] = [31.0, 55.0]
    result = update_items(
        shop,
        add=_changed(tiny_retriever, NEW),
        replace=_changed(tiny_retriever, replacing),
        remove=["g1", "k1"],
    )
    assert (result.added, result.replaced, result.removed, result.encoded) == (2, 2, 2, 3)
    assert result.version == 2
    assert sorted(version_folders(shop)) == [1, 2]

    after: Rows = {name: list(values) for name, values in rows.items()}
    for name, values in after.items():
        values[6], values[1] = replacing[name]
        after[name] = [value for row, value in enumerate(values) if row not in (0, 4)] + NEW[name]
    whole = _export(tiny_retriever, after, tmp_path / "whole" / "shop", lexical_weight=0.4)
    _assert_equal_answers(result.path, whole.path)
    stored = StoredItems.read(result.path)
    assert stored.ids == after["item_id"] == ["k2", "m1", "m2", "g2", "p 1", "é1", "n1", "n2"]
    assert stored.columns == {"brand": after["brand"], "price": after["price"]}
    assert stored.columns["price"] == [55.0, None, 8.0, 25.0, 31.0, 35.0, 4.5, None]

    manifest = Manifest.read(result.path)
    assert manifest.item_count == 8
    assert manifest.run_id == "run 7"
    assert manifest.lexical_weight == 0.4
    assert manifest.encoder_fingerprint == whole.manifest.encoder_fingerprint


@pytest.mark.parametrize("index", ["exact", "scann", "partitioned"])
def test_embeddings_of_the_rest_are_taken_from_the_export(
    index: str, tiny_retriever: Retriever, rows: Rows, tmp_path: Path
) -> None:
    # As after encoding in bfloat16: not what the towers say now, to the last bit.
    texts = tiny_retriever.template.render(rows)
    vectors = tiny_retriever.encode_items(texts)
    vectors += np.random.default_rng(0).normal(scale=1e-3, size=vectors.shape).astype(np.float32)
    base = tmp_path / "shop"
    _export(tiny_retriever, rows, base, index=index, item_embeddings=vectors)
    added = _changed(tiny_retriever, NEW, lexical=False)
    result = update_items(base, add=added, remove=["k2"])
    assert result.encoded == 2
    assert result.manifest.index_kind == index

    kept = [row for row in range(8) if row != 1]
    stored = StoredItems.read(result.path).embeddings
    np.testing.assert_array_equal(stored[:7], vectors[kept])
    np.testing.assert_allclose(stored[7:], tiny_retriever.encode_items(added.texts), atol=1e-5)
    query = tiny_retriever.encode_queries(["garden mug"])
    answer = load_export(result.path).signatures["search"](query=tf.constant(["garden mug"]))
    np.testing.assert_allclose(
        answer["scores"].numpy()[0, :9], -np.sort(-(query @ stored.T)[0]), atol=1e-5
    )


def test_an_export_of_nothing_else(tiny_retriever: Retriever, tmp_path: Path) -> None:
    base = tmp_path / "shop"
    export_retriever(tiny_retriever, ["a"], ["Red mug"], base)
    assert update_items(base, add=ChangedItems(["b"], ["Garden rake"])).encoded == 1
    result = update_items(base, remove=["a"])
    assert (result.version, result.manifest.item_count) == (3, 1)
    answer = load_export(result.path).signatures["search"](query=tf.constant(["mug"]))
    assert answer["item_ids"].numpy()[0].tolist() == [b"b"] + [b""] * 9


def _ids(*item_ids: str) -> ChangedItems:
    empty = ["" for _ in item_ids]
    fields = {"title": empty, "brand": empty}
    return ChangedItems(item_ids, empty, fields, {"brand": empty, "price": [None] * len(empty)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to change"),
        ({"add": _ids("n1", "k1")}, "'k1' is in the export already"),
        ({"add": _ids("n1", "n2", "n1")}, "'n1' is named more than once"),
        ({"remove": ["zz", "yy"]}, r"'zz' \(and 1 more\) is not in the export"),
        ({"remove": ["k1", "k1"]}, "'k1' is named more than once"),
        ({"replace": _ids("zz")}, "'zz' is not in the export"),
        ({"replace": _ids("k1"), "remove": ["k1"]}, "'k1' is named more than once"),
        ({"remove": ["k1", "k2", "m1", "m2", "g1", "g2", "p 1", "é1"]}, "no item would be left"),
        ({"add": ChangedItems(["n1"], ["text"])}, "lexical fields .* title, brand; .* none"),
        (
            {"add": ChangedItems(["n1"], ["text"], {"title": ["x"], "brand": ["x"]})},
            "columns of the export are brand, price; the new items have none",
        ),
        ({"add": ChangedItems(["n1"], ["a", "b"])}, "1 items need as many values of item texts: 2"),
    ],
)
def test_bad_changes_publish_nothing(hybrid: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        update_items(hybrid, **changes)
    assert list(version_folders(hybrid)) == [1]


def test_towers_that_did_not_make_the_embeddings_are_refused(
    shop: Path, make_tiny_retriever: Callable[..., Retriever]
) -> None:
    folder = shop / "1" / STORE / "retriever"
    shutil.rmtree(folder)
    make_tiny_retriever(seed=5).save(folder)
    with pytest.raises(InputError, match="fingerprints differ"):
        update_items(shop, remove=["k1"])
    # Nor does it help to have the fingerprint match.
    facts = json.loads((shop / "1" / "manifest.json").read_text())
    facts["encoder_fingerprint"] = Retriever.load(folder).fingerprint()
    (shop / "1" / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"the embedding of item '.*' is not what"):
        update_items(shop, remove=["k1"])


def test_an_export_without_its_items_is_refused(shop: Path) -> None:
    shutil.rmtree(shop / "1" / STORE)
    with pytest.raises(InputError, match="does not keep its items"):
        update_items(shop, remove=["k1"])


@pytest.mark.parametrize("file", ["items.parquet", "item_embeddings.npy"])
def test_a_damaged_store_is_refused(shop: Path, file: str) -> None:
    (shop / "1" / STORE / file).write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        update_items(shop, remove=["k1"])


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no version"):
        update_items(tmp_path / "shop", remove=["k1"])


def test_what_another_publishes_meanwhile_is_not_undone(shop: Path) -> None:
    def publish_another(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("write version", 0):
            with new_version(shop) as draft:
                (draft.path / "saved_model.pb").write_bytes(b"another")

    with pytest.raises(InputError, match=r"version 2 .* appeared .* version 1.* again"):
        update_items(shop, remove=["k1"], progress=publish_another)
    assert list(version_folders(shop)) == [1, 2]
    assert (shop / "2" / "saved_model.pb").read_bytes() == b"another"
