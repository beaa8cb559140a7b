"""Sharded exports through real servers, against one index over the same items."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.client import Hit, RetrievalClient, ServingError
from serving.export import export_retriever
from serving.fan_out import ShardedClient
from serving.loading import load_export
from serving.manifest import Manifest
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer
from serving.sharded_export import PublishedShards, export_shards
from serving.sharded_update import update_shards
from serving.shards import find_shards, shard_of
from serving.stored_items import StoredItems
from serving.update import ChangedItems, update_items
from serving.verify import verify, verify_shards
from serving.versions import version_folders
from towers import InputError, Retriever

WEIGHT = 0.4
K = 7
QUERIES = ["electric kettle", "gardn rake", "red mug for coffee", "Crème brûlée", "zzz", "", "漢字"]
SAME = ["same1", "same2", "same3", "same4"]  # four items that no score tells apart
Rows = dict[str, list[Any]]


def _rows(tiny_catalog: dict[str, list[str]]) -> Rows:
    """The tiny catalogue, some items of other words, and items that are the same but for the id."""
    rows: Rows = {name: list(values) for name, values in tiny_catalog.items()}
    nouns = ("kettle", "mug", "rake", "hose", "torch")
    for number in range(22):
        noun, adjective = nouns[number % 5], ("red", "electric", "garden")[number % 3]
        rows["item_id"].append(f"x{number}")
        rows["title"].append(f"{adjective.title()} {noun} {number % 4 or ''}".strip())
        rows["brand"].append(("Harrow", "", "Oakfield")[number % 3])
        rows["description"].append("Holds coffee." if number % 2 else "")
    for item_id in SAME:
        rows["item_id"].append(item_id)
        rows["title"].append("Red mug")
        rows["brand"].append("")
        rows["description"].append("Holds 350 ml.")
    rows["price"] = [None if n % 7 == 3 else 5.0 + n for n in range(len(rows["item_id"]))]
    return rows


@pytest.fixture(scope="module")
def rows(tiny_catalog: dict[str, list[str]]) -> Rows:
    return _rows(tiny_catalog)


@pytest.fixture(scope="module")
def items(tiny_retriever: Retriever, rows: Rows) -> tuple[Any, ...]:
    texts = tiny_retriever.template.render(rows)
    return tiny_retriever, rows["item_id"], texts


@pytest.fixture(scope="module")
def options(tiny_retriever: Retriever, rows: Rows, items: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "k": K,
        "lexical_weight": WEIGHT,
        "lexical_fields": {name: rows[name] for name in ("title", "brand")},
        "columns": {"brand": rows["brand"], "price": rows["price"]},
        "item_embeddings": tiny_retriever.encode_items(items[2]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def one(folder: Path, items: tuple[Any, ...], options: dict[str, Any]) -> Iterator[RetrievalClient]:
    """A client of one index over all items."""
    base = folder / "whole"
    export_retriever(*items, base, **options)
    with (
        ModelServer(base) as server,
        RetrievalClient(f"127.0.0.1:{server.grpc_port}", model="whole") as client,
    ):
        yield client


@pytest.fixture(scope="module")
def sharded(
    folder: Path, items: tuple[Any, ...], options: dict[str, Any]
) -> Callable[[int], PublishedShards]:
    """Returns a function that gives an export in so many shards, made once."""
    made: dict[int, PublishedShards] = {}

    def export(count: int) -> PublishedShards:
        if count not in made:
            made[count] = export_shards(*items, folder / f"shop{count}", shards=count, **options)
        return made[count]

    return export


def _assert_same(got: list[list[Any]], expected: list[list[Any]]) -> None:
    """The same items in the same order, scores to 1e-6, and whatever else hits tell."""
    assert [[hit.item_id for hit in hits] for hits in got] == [
        [hit.item_id for hit in hits] for hits in expected
    ]
    for found, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose([x.score for x in found], [x.score for x in wanted], atol=1e-6)
        assert [x[2:] for x in found] == [x[2:] for x in wanted]


def _assert_as_one(client: ShardedClient, one: RetrievalClient) -> None:
    for k in (None, 1, 3):
        _assert_same(client.search(QUERIES, k=k), one.search(QUERIES, k=k))
    filters: list[tuple[dict[str, Any], list[str]]] = [
        ({}, []),
        ({"brand": ["Harrow", "Oakfield"]}, []),
        ({"price": (10, 20)}, ["m2", "x7"]),
        ({"price": (None, 12.5), "brand": ["Harrow"]}, []),
        ({"price": (1000, None)}, []),
    ]
    for allowed, exclude in filters:
        wanted = one.search_filtered(QUERIES, allowed, exclude)
        _assert_same(client.search_filtered(QUERIES, allowed, exclude), wanted)
    asked = ["m2", "unknown", "", "same1", "x3"]
    _assert_same(client.similar(asked), one.similar(asked))
    np.testing.assert_allclose(
        client.encode_queries(QUERIES), one.encode_queries(QUERIES), atol=1e-6
    )


@pytest.mark.parametrize(("count", "transport"), [(1, "grpc"), (2, "rest"), (3, "grpc"), (5, "grpc")])
def test_shards_on_one_server_answer_as_one_index(
    count: int,
    transport: str,
    sharded: Callable[[int], PublishedShards],
    one: RetrievalClient,
) -> None:
    published = sharded(count)
    assert published.item_count == 34
    with ModelServer(model_config_file=published.config) as server:
        port = server.grpc_port if transport == "grpc" else server.rest_port
        addresses = [f"127.0.0.1:{port}"] * count
        with ShardedClient(addresses, model=f"shop{count}", transport=transport) as client:
            _assert_as_one(client, one)
            assert client.search([]) == []
            assert client.search(["mug"]).missing == []
            state = {name: [x.state for x in of_shard] for name, of_shard in client.status().items()}
    assert state == {path.parent.name: ["AVAILABLE"] for path in published.paths}
