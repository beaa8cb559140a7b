"""Item attributes on the command line: a shop where brand and price carry the signal."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.loading import load_export
from serving.manifest import Manifest
from serving.stored_items import StoredItems
from towers import Recommender, Retriever
from towers.cli import cli, run
from training.catalog import Catalog
from training.run_folder import RunFolder
from training.train import render_items

BRAND_OF = {"coffee": "Harrow", "garden": "Oakfield", "cat": "Purr", "hose": "Kettlewise"}
ASKED = ["garden garden fast fast post"]
NOISE = ["red", "steel", "hot", "lid", "rake", "torch", "post", "sofa", "water", "hours"]


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Titles say nothing; of a query one word stands for a brand, one for a side of the price."""
    folder = tmp_path_factory.mktemp("attributes")
    draw = np.random.default_rng(0)
    items = []
    for number in range(64):
        brand, cheap = list(BRAND_OF.values())[number % 4], number % 8 < 4
        items.append(
            {
                "item_id": f"i{number}",
                "title": " ".join(draw.choice(NOISE, 2)),
                "brand": brand,
                "price": draw.uniform(1, 9) if cheap else draw.uniform(50, 90),
                "shelf": draw.choice(["north", "south", "east"]),
            }
        )
    items.append({"item_id": "bare", "title": "red mug", "brand": "", "price": "", "shelf": "east"})
    _write(folder / "catalog.csv", items)
    for name, words in (("train", NOISE[:5]), ("test", NOISE[5:])):
        rows = [
            {"query": f"{word} {word} {side} {side} {noise}", "item_id": item["item_id"]}
            for word, brand in BRAND_OF.items()
            for side in ("slow", "fast")
            for noise in words
            for item in items[:-1]
            if item["brand"] == brand and (item["price"] < 10) == (side == "slow")
        ]
        _write(folder / f"{name}.csv", rows)
    lines = []
    for user in range(24):  # a customer stays with a brand
        own = [item["item_id"] for item in items[:-1] if item["brand"] == items[user % 4]["brand"]]
        lines.append({"user_id": f"u{user}", "items": draw.choice(own, 4, replace=False).tolist()})
    histories = folder / "histories.jsonl"
    histories.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def towers() -> Callable[..., None]:
    def call(*words: object) -> None:
        command = [str(word) for word in words]
        assert run(lambda: cli.main(command, prog_name="towers", standalone_mode=False)) == 0

    return call


@pytest.fixture(scope="module")
def train(shop: Path, tiny_preset: str, towers: Callable[..., None]) -> Callable[..., Path]:
    def call(name: str, *options: object, encoder: str = "") -> Path:
        config = shop / f"{name}.toml"
        lengths = "query_max_length = 12\nitem_max_length = 16\n"
        config.write_text(f"[encoder]\n{lengths}{encoder}", "utf-8")
        towers(
            *("train", "--catalog", shop / "catalog.csv", "--interactions", shop / "train.csv"),
            *("--output", shop / name, "--encoder", tiny_preset, "--item-text", "{title}"),
            *("--method", "zero-shot", "--lexical", "off", *options),
            *("--config", config),
        )
        return shop / name

    return call


@pytest.fixture(scope="module")
def fused(shop: Path, train: Callable[..., Path]) -> Path:
    histories = ("--histories", shop / "histories.jsonl")
    return train("fused", "--numeric", "price", "--categorical", "brand", *histories)


def _metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text("utf-8"))


def _ndcg(shop: Path, folder: Path) -> float:
    """nDCG@10 on the test queries, from vectors alone."""
    retriever = RunFolder.existing(folder).load_retriever()
    products = Catalog.read(shop / "catalog.csv")
    vectors = retriever.encode_items(render_items(retriever.template, products))
    wanted: dict[str, set[str]] = {}
    with (shop / "test.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            wanted.setdefault(row["query"], set()).add(row["item_id"])
    scores = []
    for query, relevant in wanted.items():
        best = np.argsort(-(vectors @ retriever.encode_queries([query])[0]))[:10]
        hits = np.array([products.item_ids[row] in relevant for row in best])
        discount = 1 / np.log2(np.arange(2, 12))
        scores.append((hits * discount).sum() / discount[: len(relevant)].sum())
    return float(np.mean(scores))


def test_attributes_that_carry_the_signal_are_fused_and_found(shop, fused):
    assert _metrics(fused)["attributes"]["fused"] == ["price", "brand"]
    text_alone = _metrics(fused)["attributes"]["trials"][0]
    assert text_alone["spread"] == 0
    assert _ndcg(shop, fused) > 0.8
    retriever = Retriever.load(fused / "model")
    assert retriever.template.pattern == "{title}{price:number}{brand:category}"


def test_attributes_that_say_nothing_are_refused(shop, train, fused):
    folder = train("refused", "--categorical", "shelf")
    assert _metrics(folder)["attributes"]["fused"] == []
    retriever = Retriever.load(folder / "model")
    assert retriever.template.pattern == "{title}"
    assert retriever.model.fusion is None
    assert _ndcg(shop, folder) < 0.4


def test_the_encoder_trains_on_with_the_fusion(shop, train):
    encoder = 'numeric = ["price"]\ncategorical = ["brand"]\n'
    folder = train("full", "--method", "full", "--epochs", 1, encoder=encoder)
    fusion = Retriever.load(folder / "model").model.fusion
    assert [one.name for one in fusion.attributes] == ["price", "brand"]
    assert _ndcg(shop, folder) > 0.8


def test_an_export_keeps_attributes_through_changes_of_items(shop, fused, towers, capsys):
    base = shop / "saved_models" / "shop"
    catalog = ("--catalog", shop / "catalog.csv")
    towers("export", "--model", fused, *catalog, "--output", base, "--index", "exact")
    retriever = Retriever.load(fused / "model")
    first = base / "1"
    manifest, stored = Manifest.read(first), StoredItems.read(first)
    assert manifest.item_template == "{title}{price:number}{brand:category}"
    assert manifest.encoder_fingerprint == retriever.fingerprint()
    signatures = load_export(first).signatures
    asked = [*stored.texts[:4], "red mug", "red mug\x1f5\x1fNew Brand"]
    found = signatures["encode_item"](text=tf.constant(asked))["embedding"].numpy()
    np.testing.assert_allclose(found, retriever.encode_items(asked), atol=1e-5)
    hits = signatures["search"](query=tf.constant(ASKED))["item_ids"].numpy()[0]
    brand = dict(zip(stored.ids, stored.texts, strict=True))
    assert all(brand[hit.decode()].endswith("Oakfield") for hit in hits[:5])

    # Items enter a history by their fused vectors.
    users = Recommender.load(fused / "recommender").over(
        stored.ids, stored.texts, retriever.encode_items(stored.texts)
    )
    history = ["i0", "i4"]
    found = signatures["recommend"](history=tf.constant([history]), query=tf.constant([""]))[
        "item_ids"
    ].numpy()[0]
    assert [x.decode() for x in found] == [x for x, _ in users.recommend([history], k=10)[0]]

    new = [
        {"item_id": "new", "title": "sofa", "brand": "Oakfield", "price": 70, "shelf": ""},
        {"item_id": "odd", "title": "sofa", "brand": "Unheard of", "price": "", "shelf": ""},
    ]
    towers("index", "add", base, _write(shop / "new.csv", new))
    changed = [{"item_id": "i1", "title": "sofa", "brand": "Purr", "price": 3, "shelf": ""}]
    capsys.readouterr()
    towers("index", "replace", base, _write(shop / "changed.csv", changed), "--json")
    assert json.loads(capsys.readouterr().out)["encoded"] == 1
    last = StoredItems.read(base / "3")
    place = {item_id: row for row, item_id in enumerate(last.ids)}
    for item_id, text in {
        "new": "sofa\x1f70\x1fOakfield",
        "odd": "sofa\x1f\x1fUnheard of",
        "i1": "sofa\x1f3\x1fPurr",
    }.items():
        assert last.texts[place[item_id]] == text
        expected = retriever.encode_items([text])[0]
        np.testing.assert_allclose(last.embeddings[place[item_id]], expected, atol=1e-5)
    towers("index", "verify", base)
    again = load_export(base / "3").signatures["search"](query=tf.constant(ASKED))
    scores = dict(zip(again["item_ids"].numpy()[0], again["scores"].numpy()[0], strict=True))
    assert b"new" in scores


def test_bad_attributes_are_refused_by_name(shop, train, towers, tiny_preset, capsys, tmp_path):
    def refused(*options: object) -> str:
        words = ["train", "--catalog", shop / "catalog.csv", "--output", tmp_path / "none"]
        words += ["--encoder", tiny_preset, "--item-text", "{title}", *options]
        command = [str(word) for word in words]
        assert run(lambda: cli.main(command, prog_name="towers", standalone_mode=False)) == 2
        assert not (tmp_path / "none").exists()
        return capsys.readouterr().err

    pairs = ("--interactions", shop / "train.csv")
    assert "attribute 'shelf' is a number, and row 1 has" in refused(*pairs, "--numeric", "shelf")
    assert "no text column 'weight'" in refused(*pairs, "--numeric", "weight")
    assert "no column of vectors 'image_embedding'" in refused(*pairs, "--image")
    assert "names the attribute 'price' twice" in refused(
        *pairs, "--numeric", "price", "--categorical", "price"
    )
    assert "give --interactions" in refused("--numeric", "price")
