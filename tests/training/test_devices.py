"""`towers train` on several devices and in several processes: where one device would have come."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from towers.cli import cli, run
from towers.errors import InputError
from towers.retriever import Retriever
from training.config import FitConfig, Method
from training.devices import make_strategy
from training.epoch_dataset import row_parts
from training.methods import require_suitable

# Runs the command line on some logical CPU devices, once for each list of arguments, and keeps the
# weights that this process ends with.
RUN = """
import json, os, sys
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tensorflow as tf
devices, calls = int(sys.argv[1]), json.loads(sys.argv[2])
if devices > 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
import numpy as np
from towers.cli import cli, run
from training.run_folder import RunFolder

finish = RunFolder.finish

def finish_and_keep(self, retriever, *rest, **further):
    np.savez(weights, *retriever.model.get_weights())
    finish(self, retriever, *rest, **further)

RunFolder.finish = finish_and_keep
for weights, arguments in calls:
    status = run(lambda: cli.main(arguments, prog_name="towers", standalone_mode=False))
    if status:
        sys.exit(status)
"""


@pytest.fixture
def shop(tmp_path: Path, tiny_catalog: dict[str, list[str]], tiny_preset: str) -> Path:
    """A folder with a catalogue, 22 pairs, and a configuration that asks for all kinds of item."""
    ids, titles = tiny_catalog["item_id"], tiny_catalog["title"]
    rows = [f"{i},{title}" for i, title in zip(ids, titles, strict=True)]
    (tmp_path / "catalog.csv").write_text("\n".join(["item_id,title", *rows]), "utf-8")
    pairs = [f"{titles[n % 8].split()[0]} {n},{ids[n % 8]}" for n in range(22)]
    (tmp_path / "pairs.csv").write_text("\n".join(["query,item_id", *pairs]), "utf-8")
    config = {
        "encoder": {"preset": tiny_preset, "query_max_length": 12, "item_max_length": 24},
        "method": "full",
        "lexical": "off",
        "fit": {
            **{"epochs": 2, "batch_size": 8, "learning_rate": 1e-4, "mixed_precision": "float32"},
            **{"hard_negatives": 1, "cached_negatives": 5, "anchor": 0.1, "accumulate": 2},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    return tmp_path


def arguments(shop: Path, output: str, *options: str) -> list[str]:
    return [
        *("train", "--catalog", str(shop / "catalog.csv"), "--output", str(shop / output)),
        *("--interactions", str(shop / "pairs.csv"), "--config", str(shop / "config.json")),
        *("--json", *options),
    ]


def start(
    devices: int, calls: Sequence[tuple[Path, list[str]]], **environment: str
) -> subprocess.Popen[str]:
    words = [[str(weights), call] for weights, call in calls]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(devices), json.dumps(words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cluster(workers: int) -> list[str]:
    """The TF_CONFIG of each worker of a cluster on loopback."""
    ports = []
    for _ in range(workers):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    hosts = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return [
        json.dumps({"cluster": hosts, "task": {"type": "worker", "index": index}})
        for index in range(workers)
    ]


def read(weights: Path) -> list[np.ndarray]:
    with np.load(weights) as file:
        return [file[name] for name in file.files]


def test_devices_and_workers_end_where_one_device_does(shop: Path) -> None:
    here, elsewhere = cluster(2)
    multi_worker = ("--strategy", "multi-worker")
    processes = [
        start(
            2,
            [
                (shop / "one.npz", arguments(shop, "one")),
                (shop / "two.npz", arguments(shop, "two", "--strategy", "mirrored")),
            ],
        ),
        start(1, [(shop / "0.npz", arguments(shop, "chief", *multi_worker))], TF_CONFIG=here),
        start(1, [(shop / "1.npz", arguments(shop, "other", *multi_worker))], TF_CONFIG=elsewhere),
    ]
    answers = []
    for process in processes:
        output, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors[-3000:]
        answers += [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    one = answers[0]["fit"]
    assert len(one["losses"]) == 2
    for answer in answers[1:]:
        assert answer["fit"]["losses"] == pytest.approx(one["losses"], rel=1e-5)
    expected = read(shop / "one.npz")
    for name in ("two", "0", "1"):
        for weight, other in zip(expected, read(shop / f"{name}.npz"), strict=True):
            np.testing.assert_allclose(other, weight, atol=1e-5, rtol=0)
    assert (shop / "chief" / "metrics.json").is_file()
    assert not (shop / "other").exists()  # the chief alone writes


@pytest.mark.parametrize(
    ("strategy", "config", "message"),
    [
        ("tpu", None, "strategy tpu needs a TPU and a TensorFlow that was built for it; none was"),
        ("mirrored", None, "needs several devices, and TensorFlow sees one CPU"),
        ("multi-worker", None, "needs TF_CONFIG in the environment of every worker: {"),
        ("multi-worker", "{", "its value cannot be read"),
        ("multi-worker", '{"cluster": {"worker": ["a:1"]}}', "cannot be read: KeyError..task"),
        (
            "multi-worker",
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "has no worker 1 among those of the cluster",
        ),
    ],
)
def test_devices_that_are_not_there(
    strategy: Any, config: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(InputError, match=message):
        make_strategy(strategy)


@pytest.mark.parametrize(
    ("method", "precision", "message"),
    [
        ("full", "mixed_float16", "mixed_float16 trains on one device: take mixed_bfloat16 or"),
        ("adalora", "float32", "method adalora trains on one device: take lora"),
    ],
)
def test_what_one_device_alone_can_do(
    method: Method,
    precision: Any,
    message: str,
    tiny_retriever: Retriever,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = FitConfig(mixed_precision=precision)
    require_suitable(tiny_retriever.model, method, config)
    several = SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: several)
    with pytest.raises(InputError, match=message):
        require_suitable(tiny_retriever.model, method, config)


def test_the_command_line_says_so(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(shop, "run", "--strategy", "mirrored")
    assert run(lambda: cli.main(words, prog_name="towers", standalone_mode=False)) == 2
    assert "Error: strategy mirrored needs several devices" in capsys.readouterr().err
    assert not (shop / "run").exists()


def test_parts_of_a_batch() -> None:
    batch = ({"a": np.arange(5), "b": np.arange(6).reshape(3, 2)}, np.arange(1))
    first, second = row_parts(batch, 2)
    assert first[0]["a"].tolist() == [0, 1, 2]
    assert first[0]["b"].tolist() == [[0, 1], [2, 3]]
    assert first[1].tolist() == [0]
    assert second[0]["a"].tolist() == [3, 4]
    assert second[0]["b"].tolist() == [[4, 5]]
    assert second[1].tolist() == []
