"""Shards on the command line: export, serve, query, change."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bulk.output import DIGEST, FINISHED_FOLDER, MANIFEST_FILE, EncodedManifest, ShardDigest
from serving.bulk.shard_files import shard_writer
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer
from serving.shards import find_shards, shard_of
from serving.stored_items import StoredItems
from training.run_folder import RunFolder


def _write(path: Path, columns: dict[str, list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list[str]], tiny_preset: str
) -> Path:
    """A folder with a catalogue and a run of zero-shot towers."""
    from towers.cli import cli, run

    folder = tmp_path_factory.mktemp("shop")
    catalog = _write(folder / "products.csv", tiny_catalog)
    config = f'[encoder]\npreset = "{tiny_preset}"\nquery_max_length = 12\nitem_max_length = 24\n'
    (folder / "config.toml").write_text(config, "utf-8")
    words = ["train", "--catalog", catalog, "--output", folder / "run"]
    words += ["--config", folder / "config.toml"]
    words += ["--item-text", "{title}[ by {brand}]", "--lexical", "0.3"]
    assert run(lambda: cli.main([str(word) for word in words], standalone_mode=False)) == 0
    return folder


@pytest.fixture(scope="module")
def base(shop: Path) -> Path:
    """The folder of an export in two shards."""
    from towers.cli import cli, run

    base = shop / "models" / "shop"
    words = ["export", "--model", shop / "run", "--catalog", shop / "products.csv"]
    words += ["--output", base, "--shards", 2, "--columns", "brand"]
    assert run(lambda: cli.main([str(word) for word in words], standalone_mode=False)) == 0
    return base


@pytest.fixture
def server(base: Path) -> Iterator[ModelServer]:
    loading = LoadOptions(poll_seconds=0, warm_up=False)
    with ModelServer(model_config_file=base / "models.config", loading=loading) as server:
        yield server


def test_shards_are_exported_asked_and_changed(
    shop: Path,
    base: Path,
    server: ModelServer,
    towers: Callable[..., Any],
    tiny_catalog: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    found = find_shards(base)
    assert found is not None
    assert found.version == 1
    address = f"127.0.0.1:{server.grpc_port}"
    ask = ("query", "gardn rake", "--model", "shop", "--k", 3, "--json", "--timeout", 120)
    for servers in (("--server", address, "--shards", 2), ("--server", f"{address},{address}")):
        answer = towers(*ask, *servers).json
        assert answer["items"][0]["item_id"] == "g1"
        assert len(answer["items"]) == 3
    rest = ("--rest", "--server", f"127.0.0.1:{server.rest_port}", "--shards", 2)
    found_ids = [item["item_id"] for item in answer["items"]]
    assert [item["item_id"] for item in towers(*ask, *rest).json["items"]] == found_ids

    down = "127.0.0.1:1"
    failed = towers(*ask, "--server", f"{address},{down}")
    assert failed.status == 1
    assert f"shop-00001-of-00002 at {down}" in failed.err
    partial = towers(*ask, "--server", f"{address},{down}", "--partial")
    assert partial.json["missing"] == ["shop-00001-of-00002"]
    assert "Without shop-00001-of-00002" in partial.err
    assert {shard_of(item["item_id"], 2) for item in partial.json["items"]} == {0}
    replica = towers(*ask, "--server", f"{down}|{address},{address}").json
    assert replica == answer

    new = _write(tmp_path / "new.csv", {"item_id": ["n1"], "title": ["Zinc bucket"], "brand": [""]})
    facts = towers("index", "add", base, new, "--json").json
    assert (facts["version"], facts["added"], facts["item_count"]) == (2, 1, 9)
    assert facts["path"] == str(base.resolve())
    columns = {name: [*values, ""] for name, values in tiny_catalog.items()}
    columns["item_id"][-1], columns["title"][-1] = "n1", "Zinc bucket"
    whole = _write(tmp_path / "whole.csv", columns)
    sound = towers("index", "verify", base, "--catalog", whole)
    assert sound.status == 0, sound.out
    assert sound.out.startswith("9 items in version 2")
    stale = towers("index", "verify", base, "--catalog", shop / "products.csv", "--json")
    assert stale.status == 1
    assert '"orphans"' in stale.out
    assert "one of 2 shards" in towers("index", "add", found.paths[0].parent, new).err
    assert towers("rollback", base, "--json").json["republished"] == 1
    removed = towers("index", "remove", base, new, "--json")
    assert removed.status == 2
    assert "'n1' is not in the export" in removed.err


def test_vectors_made_ahead_go_to_the_shards_of_their_items(
    shop: Path, towers: Callable[..., Any], tiny_catalog: dict[str, list[str]], tmp_path: Path
) -> None:
    """Vectors that the encoder would not make, in a folder as `towers encode` writes it."""
    retriever = RunFolder.existing(shop / "run").load_retriever()
    ids, catalog = tiny_catalog["item_id"], shop / "products.csv"
    vectors = np.random.default_rng(0).normal(size=(len(ids), 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    manifest = EncodedManifest(
        encoder_fingerprint=retriever.fingerprint(),
        item_template=retriever.text.item_template,
        format="parquet",
        shards=1,
        embedding_dim=32,
        catalog=[str(catalog)],
        complete=True,
        items=len(ids),
    )
    (tmp_path / FINISHED_FOLDER).mkdir()
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest.facts()))
    with shard_writer(tmp_path / manifest.part(0), "parquet", 32) as write:
        write(ids, vectors)
    digest = ShardDigest(manifest.encoder_fingerprint)
    digest.update(ids, retriever.template.render(tiny_catalog))
    record = json.dumps({DIGEST: digest.hexdigest()})
    (tmp_path / FINISHED_FOLDER / manifest.finished(0)).write_text(record)
    facts = towers(
        *("export", "--model", shop / "run", "--catalog", catalog, "--lexical", "off"),
        *("--output", tmp_path / "models" / "shop", "--shards", 2, "--vectors", tmp_path, "--json"),
    ).json
    assert len(facts["shards"]) == 2
    for number, shard in enumerate(facts["shards"]):
        rows = [row for row, item_id in enumerate(ids) if shard_of(item_id, 2) == number]
        assert StoredItems.read(Path(shard["path"])).ids == [ids[row] for row in rows]
        kept = np.load(Path(shard["path"]) / "assets.extra" / "towers" / "item_embeddings.npy")
        np.testing.assert_array_equal(kept, vectors[rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--server", "a:1,b:2", "--shards", 3), "--shards is 3, and --server names servers of 2"),
        (("--partial",), "--partial and several servers are for shards"),
        (("--server", "a:1|b:1"), "--partial and several servers are for shards"),
        (("--server", "a:1,b"), "'b' is not the address of a gRPC server"),
    ],
)
def test_bad_servers(options: tuple[object, ...], message: str, towers: Callable[..., Any]) -> None:
    answer = towers("query", "mug", "--model", "shop", *options)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err
