"""Roll-back: what is published, what it is made of, and what cannot be gone back to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from serving.manifest import STOCK_SERVER, Manifest
from serving.rollback import roll_back
from serving.versions import version_folders
from towers import InputError

Publish = Callable[[Path, int], Path]


@pytest.fixture
def base(tmp_path: Path, publish: Publish) -> Path:
    for version in (1, 2, 3):
        publish(tmp_path / "shop", version)
    return tmp_path / "shop"


def _manifest(run_id: str) -> Manifest:
    return Manifest(
        encoder_fingerprint="ab12",
        item_template="{title}",
        query_max_length=32,
        item_max_length=128,
        embedding_dim=384,
        item_count=3,
        k=10,
        index_kind="exact",
        index_parameters={},
        index_recall=1.0,
        index_recall_measured="nothing",
        index_reason="as asked",
        signatures=["serving_default"],
        server=STOCK_SERVER,
        run_id=run_id,
    )


def _score(path: Path) -> float:
    """What a ShopModel answers: the number of the version that it was exported as."""
    search = tf.saved_model.load(str(path)).signatures["search"]
    return float(search(query=tf.constant(["mug"]))["scores"][0, 0])


def test_the_version_before_becomes_the_newest(base: Path) -> None:
    result = roll_back(base)
    assert (result.version, result.republished) == (4, 2)
    assert result.path == base / "4"
    assert list(version_folders(base)) == [1, 2, 3, 4]
    assert _score(base / "4") == 2.0
    assert _score(base / "3") == 3.0


def test_a_named_version(base: Path) -> None:
    assert roll_back(base, 1).republished == 1
    assert roll_back(base, 3).version == 5  # and forward again
    assert _score(base / "5") == 3.0


def test_a_second_one_goes_further_back(base: Path) -> None:
    for version in (1, 2, 3):
        _manifest(f"run {version}").write(base / str(version))
    assert [roll_back(base).republished for _ in range(2)] == [2, 1]
    with pytest.raises(InputError, match="no version before 1"):
        roll_back(base)
    manifests = [Manifest.read(base / str(version)) for version in (1, 2, 3, 4, 5)]
    assert [manifest.run_id for manifest in manifests] == [f"run {i}" for i in (1, 2, 3, 2, 1)]
    assert [manifest.republished for manifest in manifests] == [None, None, None, 2, 1]
    assert manifests[3] == dataclasses.replace(manifests[1], republished=2)
    with pytest.raises(InputError, match=r"version 1 .* in service"):
        roll_back(base, 1)


def test_a_deleted_version_takes_nothing_with_it(base: Path) -> None:
    result = roll_back(base, 1)
    for file in sorted((base / "1").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert _score(result.path) == 1.0


def test_without_hard_links_files_are_copied(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert _score(roll_back(base).path) == 2.0


@pytest.mark.parametrize(
    ("version", "message"),
    [(7, "no complete version 7; there are 1, 2, 3"), (3, "version 3 .* is the one in service")],
)
def test_what_cannot_be(base: Path, version: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        roll_back(base, version)
    assert list(version_folders(base)) == [1, 2, 3]


def test_no_version_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no version"):
        roll_back(tmp_path / "shop")
