"""`benchmarks/accelerator.py`: what it counts, and that it runs where there is no TensorFlow."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_operations_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # left as it is
    shapes = importlib.import_module("accelerator").SHAPES
    # Six operations a weight and token (Kaplan et al. 2020, table 1) for the weights of BERT-base's
    # kernels, 12 * 12 * 768^2, and for its attention 12 * 4 * tokens * width, three times.
    for tokens in (32, 128):
        kernels, attention = 12 * 12 * 768**2, 12 * 4 * tokens * 768
        expected = 2 * tokens * (6 * kernels + 3 * attention)
        assert shapes["BERT-base"].pair_flops(tokens) == pytest.approx(expected)


@pytest.mark.slow
def test_without_tensorflow(tmp_path: Path) -> None:
    for name in ("tensorflow", "tensorflow_text"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, FOLDER / "accelerator.py", "--tiny", "--output", tmp_path / "found.json"],
        env={**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((tmp_path / "found.json").read_text())
    (row,) = record["rows"]
    assert row["pairs/s"] > 0
    assert row["memory, MB"] > 100
    assert record["settings"]["peak"]["flops"] > 1e8
    assert record["settings"]["backend"] == "jax"
