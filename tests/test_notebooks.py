"""The notebooks in examples/, executed in a small setting on CPUs, and what they say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


@pytest.fixture
def execute(
    tmp_path: Path, tiny_preset: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Executes a notebook beside a copy of the sample shop; what it printed and showed."""

    def call(name: str, **environment: str) -> str:
        shutil.copytree(EXAMPLES / "shop", tmp_path / "shop")
        small = {"EPOCHS": "2", "PAIRS": "64", "PRESET": tiny_preset, "OUTPUT": str(tmp_path)}
        for variable, value in {**small, "EXPORT": str(tmp_path), **environment}.items():
            monkeypatch.setenv(variable, value)
        notebook = nbformat.read(EXAMPLES / name, as_version=4)
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=300, resources=resources).execute()
        said = []
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if output.output_type == "stream":
                    said.append(output.text if output.name == "stdout" else "")
                else:
                    said.append(output.data["text/plain"])
        return "\n".join(said)

    return call


def test_quickstart(execute: Callable[..., str], tmp_path: Path) -> None:
    said = execute("quickstart.ipynb")
    assert "545 items, 64 positive pairs of" in said
    losses = re.search(r"loss by epoch: \[([\d.]+), ([\d.]+)\]", said)
    assert losses, said
    assert float(losses[2]) < float(losses[1])
    assert re.search(r"nDCG@10 +0\.\d+ -> 0\.\d+\n", said), said
    assert "version 1, index exact, recall 1.000" in said
    assert len(re.findall(r"^  -?\d\.\d\d  [A-Z]{3}-\d{4}  \S", said, re.MULTILINE)) == 6
    assert (tmp_path / "sample-shop" / "1" / "saved_model.pb").is_file()


@pytest.mark.parametrize(
    ("backend", "devices"),
    [
        ("jax", "jax: 2 x cpu"),
        pytest.param("tensorflow", "tensorflow: 1 x ", marks=pytest.mark.slow),
    ],
)
def test_colab(execute: Callable[..., str], tmp_path: Path, backend: str, devices: str) -> None:
    said = execute(
        "colab_tpu.ipynb",
        KERAS_BACKEND=backend,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
        BATCH="63",
    )
    assert devices in said
    assert f"batches of {64 if backend == 'jax' else 63}" in said
    losses = re.search(r"loss by epoch: \[([\d.]+), ([\d.]+)\]", said)
    assert losses, said
    assert float(losses[2]) < float(losses[1])
    assert re.search(r"nDCG@10 on the test queries: 0\.\d+ -> 0\.\d+\n", said), said
    assert (tmp_path / "towers.keras").is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_they_are_kept_without_outputs(name: str) -> None:
    for cell in nbformat.read(EXAMPLES / name, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
