"""Loading any SavedModel, and letting go of it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.index.exact import ExactIndex
from serving.index.item_index import ItemIndex
from serving.index.scann import ScannIndex
from serving.loading import load_export, uses_scann
from towers.errors import InputError


class _Searcher(tf.Module):
    """An index and nothing else."""

    def __init__(self, index: ItemIndex) -> None:
        super().__init__()
        self.tensors = index.trackables
        self.nearest = index.call
        if isinstance(index, ScannIndex):
            self.release = index.release


def _save(index: ItemIndex, folder: Path) -> Path:
    searcher = _Searcher(index)
    spec = tf.TensorSpec([None, index.embedding_dim], tf.float32, "embedding")
    search = tf.function(
        lambda embedding: {"item_ids": searcher.nearest(embedding)[1]}, input_signature=[spec]
    )
    tf.saved_model.save(searcher, str(folder), signatures={"serving_default": search})
    return folder


def _vectors(count: int, width: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _best(loaded: object, embedding: np.ndarray) -> list[str]:
    answer = loaded.signatures["serving_default"](embedding=tf.constant(embedding))  # type: ignore[attr-defined]
    return [item.decode() for item in answer["item_ids"].numpy()[:, 0]]


def test_not_an_export(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", str(tmp_path)):
        with pytest.raises(InputError, match=r"saved_model\.pb"):
            load_export(path)


@pytest.mark.parametrize("kind", [ExactIndex, ScannIndex])
def test_any_saved_model_without_a_manifest(tmp_path: Path, kind: type[ItemIndex]) -> None:
    vectors = _vectors(20, 8)
    folder = _save(kind(3).index(vectors), tmp_path / "1")
    assert uses_scann(folder) == (kind is ScannIndex)
    assert _best(load_export(folder), vectors[:3]) == ["0", "1", "2"]


def test_versions_in_one_process_do_not_mix(tmp_path: Path) -> None:
    vectors = _vectors(30, 8)
    names = [f"new {row}" for row in range(30)]
    old = load_export(_save(ScannIndex(1).index(vectors), tmp_path / "1"))
    new = load_export(_save(ScannIndex(1).index(vectors[::-1], names), tmp_path / "2"))
    for _ in range(2):
        assert _best(old, vectors[:2]) == ["0", "1"]
        assert _best(new, vectors[:2]) == ["new 29", "new 28"]
    del old
    gc.collect()
    assert _best(new, vectors[:2]) == ["new 29", "new 28"]


def test_a_version_that_is_let_go_of_frees_its_searcher(tmp_path: Path) -> None:
    vectors = _vectors(10_000, 1024)  # 39 MiB
    folder = _save(ScannIndex(1).index(vectors), tmp_path / "1")

    def load_and_let_go() -> float:
        assert _best(load_export(folder), vectors[:1]) == ["0"]
        gc.collect()
        resident = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
        return int(resident) / 1024

    load_and_let_go()
    before = load_and_let_go()
    for _ in range(6):
        after = load_and_let_go()
    assert after < before + 3 * 39, f"{before:.0f} MiB became {after:.0f}"
