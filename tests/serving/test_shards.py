"""Shards on disk: which items go where, and exports that fail on the way."""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.export import BuiltVersion, export_retriever
from serving.manifest import Manifest
from serving.rollback import roll_back
from serving.sharded_export import PublishedShards, export_shards
from serving.shards import find_shards, shard_name, shard_of
from serving.stored_items import StoredItems
from serving.versions import new_version, new_versions, version_folders
from towers import InputError, Retriever

Export = Callable[..., PublishedShards]


@pytest.fixture
def export(
    monkeypatch: pytest.MonkeyPatch,
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    tmp_path: Path,
) -> Export:
    """Returns a function that exports shards of the tiny catalogue, without their graphs."""

    def write(version: BuiltVersion, folder: Path, model_name: str, **_: Any) -> Manifest:
        (folder / "saved_model.pb").write_bytes(b"graph")
        version.items.write(folder, version.retriever)
        version.manifest.write(folder)
        return version.manifest

    monkeypatch.setattr(BuiltVersion, "write", write)

    def call(shards: int, **options: Any) -> PublishedShards:
        texts = tiny_retriever.template.render(tiny_catalog)
        return export_shards(
            tiny_retriever,
            tiny_catalog["item_id"],
            texts,
            tmp_path / "shop",
            shards=shards,
            **options,
        )

    return call


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_shard_of_an_item_is_its_crc() -> None:
    # The check value of CRC-32/ISO-HDLC, from the catalogue of parametrised CRC algorithms.
    assert shard_of("123456789", 2**31) == 0xCBF43926 % 2**31
    assert shard_of("é1", 7) == zlib.crc32(b"\xc3\xa91") % 7


def test_every_item_lies_in_its_shard(
    export: Export, tiny_catalog: dict[str, list[str]], tmp_path: Path
) -> None:
    published = export(3, run_id="run 7")
    assert [path.parent.name for path in published.paths] == [
        f"shop-0000{number}-of-00003" for number in range(3)
    ]
    seen = []
    for number, path in enumerate(published.paths):
        items = StoredItems.read(path)
        assert [shard_of(item_id, 3) for item_id in items.ids] == [number] * len(items.ids)
        assert [tiny_catalog["item_id"][place] for place in items.places] == items.ids
        seen += items.ids
        manifest = Manifest.read(path)
        facts = {"number": number, "count": 3, "export_id": published.export_id}
        assert manifest.shard == facts
        assert (manifest.item_count, manifest.run_id) == (len(items.ids), "run 7")
    assert sorted(seen) == sorted(tiny_catalog["item_id"])

    config = text_format.Parse(published.config.read_text(), ModelServerConfig())
    served = {model.name: model for model in config.model_config_list.config}
    assert {name: model.base_path for name, model in served.items()} == {
        path.parent.name: str(path.parent) for path in published.paths
    }
    assert {model.model_version_policy.latest.num_versions for model in served.values()} == {2}


def test_one_shard_is_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    modules = []
    save = BuiltVersion.write

    def write(version: BuiltVersion, *arguments: Any, **options: Any) -> Manifest:
        assert [module() for module in modules] == [None] * len(modules)
        modules.append(weakref.ref(version.module))
        return save(version, *arguments, **options)

    monkeypatch.setattr(BuiltVersion, "write", write)
    texts = tiny_retriever.template.render(tiny_catalog)
    export_shards(tiny_retriever, tiny_catalog["item_id"], texts, tmp_path / "shop", shards=2)
    assert len(modules) == 2


def test_the_export_id_tells_what_scores_depend_on(
    export: Export, make_tiny_retriever: Callable[..., Retriever], tmp_path: Path
) -> None:
    first = export(2).export_id
    assert export(2).export_id == first
    words = {"lexical_fields": {"title": ["mug"] * 8}}
    others = [
        export(2, k=3).export_id,
        export(2, lexical_weight=0.4, **words).export_id,
        export(2, lexical_weight=0.5, **words).export_id,
        export(2, lexical_weight=0.5, lexical_fields={"title": ["rake"] * 8}).export_id,
        export(2, columns={"brand": ["x"] * 8}).export_id,
        export_shards(
            make_tiny_retriever(seed=1), ["a", "b"], ["Mug", "Rake"], tmp_path / "other", shards=2
        ).export_id,
    ]
    assert len({first, *others}) == 7


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_an_interrupted_export_leaves_the_old_one(
    moment: int, export: Export, tmp_path: Path
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("build shards", moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(3, progress=interrupt)
    assert _files(tmp_path / "shop") == set()
    export(3)
    before = _files(tmp_path / "shop")
    with pytest.raises(KeyboardInterrupt):
        export(3, progress=interrupt)
    assert _files(tmp_path / "shop") == before
    assert export(3).version == 2


def test_a_version_that_some_shards_lack_is_passed_over(export: Export, tmp_path: Path) -> None:
    published = export(2)
    # As after a kill between two renames.
    with new_version(published.paths[0].parent) as draft:
        (draft.path / "saved_model.pb").write_bytes(b"half")
    found = find_shards(tmp_path / "shop")
    assert found is not None
    assert (found.version, found.newest, found.paths) == (1, 2, published.paths)
    assert export(2).version == 3


def test_versions_appear_in_all_folders_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = [tmp_path / name for name in "abc"]

    def publish() -> int | None:
        with new_versions(bases) as drafts:
            for draft in drafts:
                (draft.path / "saved_model.pb").touch()
        return drafts[0].version

    assert publish() == 1
    with new_version(bases[1]) as draft:
        (draft.path / "saved_model.pb").touch()
    assert publish() == 3
    assert [list(version_folders(base)) for base in bases] == [[1, 3], [1, 2, 3], [1, 3]]

    rename, calls = os.rename, []

    def fail(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        rename(source, target)

    monkeypatch.setattr("serving.versions.os.rename", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        publish()
    assert [list(version_folders(base)) for base in bases] == [[1, 3], [1, 2, 3], [1, 3]]
    assert not [path for base in bases for path in base.iterdir() if not path.name.isdigit()]
    with (
        pytest.raises(InputError, match=r"version 3 of .* appeared"),
        new_versions(bases, follows=2),
    ):
        pass


def test_two_numbers_of_shards(export: Export, tmp_path: Path) -> None:
    export(2)
    assert export(3).version == 1
    assert "of-00003" in (tmp_path / "shop" / "models.config").read_text()
    with pytest.raises(InputError, match="with 2 and 3 shards: remove"):
        find_shards(tmp_path / "shop")


def test_all_shards_roll_back_together(export: Export, tmp_path: Path) -> None:
    for run_id in ("first", "second"):
        published = export(2, run_id=run_id)
    result = roll_back(tmp_path / "shop")
    assert (result.version, result.republished) == (3, 1)
    found = find_shards(tmp_path / "shop")
    assert found is not None
    assert found.version == 3
    assert {Manifest.read(path).run_id for path in found.paths} == {"first"}
    with pytest.raises(InputError, match="one of 2 shards: name the folder that holds all"):
        roll_back(published.paths[0].parent)
    with pytest.raises(InputError, match="do not all have version 9"):
        roll_back(tmp_path / "shop", 9)


def test_what_cannot_be_is_refused(
    export: Export, tiny_retriever: Retriever, tmp_path: Path
) -> None:
    for shards in (0, 10_001):
        with pytest.raises(InputError, match="number of shards must be from 1 to 10,000"):
            export(shards)
    with pytest.raises(InputError, match="--histories cannot be exported in shards"):
        export(2, recommender=object())
    with pytest.raises(InputError, match="ScaNN"):
        export(2, index="scann", lexical_weight=0.4)
    with pytest.raises(InputError, match="a column of shards cannot be called 'best'"):
        export(2, columns={"best": ["x"] * 8, "brand": ["y"] * 8})
    assert not (tmp_path / "shop").exists()
    export(2)
    with pytest.raises(InputError, match="holds 2 shards: export with --shards"):
        export_retriever(tiny_retriever, ["a"], ["Mug"], tmp_path / "shop")
    whole = tmp_path / "whole"
    with new_version(whole) as draft:
        (draft.path / "saved_model.pb").touch()
    with pytest.raises(InputError, match="holds version 1 of a model that is not sharded"):
        export_shards(tiny_retriever, ["a"], ["Mug"], whole, shards=2)
    assert find_shards(whole) is None
    assert shard_name("shop", 3, 12) == "shop-00003-of-00012"
