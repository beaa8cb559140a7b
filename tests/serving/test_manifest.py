"""manifest.json: written, read back, refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.manifest import STOCK_SERVER, Manifest
from towers.errors import InputError


def _manifest(**changes: object) -> Manifest:
    facts: dict = {
        "encoder_fingerprint": "ab12",
        "item_template": "{title}[ – {marque}]",
        "query_max_length": 32,
        "item_max_length": 128,
        "embedding_dim": 384,
        "item_count": 54_667,
        "k": 10,
        "index_kind": "exact",
        "index_parameters": {},
        "index_recall": 1.0,
        "index_recall_measured": "nothing",
        "index_reason": "as asked",
        "signatures": ["serving_default"],
        "server": STOCK_SERVER,
    }
    return Manifest(**facts | changes)


def test_written_and_read_back(tmp_path: Path) -> None:
    manifest = _manifest(run_id="run 7")
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert "{title}[ – {marque}]" in (tmp_path / "manifest.json").read_text(encoding="utf-8")


def test_says_when_and_with_what(tmp_path: Path) -> None:
    manifest = _manifest()
    age = datetime.now(UTC) - datetime.fromisoformat(manifest.created)
    assert 0 <= age.total_seconds() < 60
    assert manifest.packages["tensorflow"].startswith("2.")
    assert {"python", "keras", "scann", "tensorflow-text"} <= set(manifest.packages)


def test_fields_of_a_later_release_are_passed_over(tmp_path: Path) -> None:
    _manifest().write(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lexical_weight": 0.5}))
    assert Manifest.read(tmp_path).k == 10


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"k": 3}'])
def test_what_is_not_a_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="not the manifest"):
        Manifest.read(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        Manifest.read(tmp_path)
