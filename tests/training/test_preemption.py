"""`towers train --deterministic`, killed again and again: the same bits as without a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from towers.retriever import Retriever

# Runs the command line, and kills this process at a moment: (epoch, batch) for the end of a batch,
# (epoch, null) for after the weights of an epoch and ahead of the file that names them.
RUN = """
import json, os, signal, sys
from towers.cli import cli, run
import training.checkpoints as checkpoints
from training.loop import StepProgress

moment, *calls = json.loads(sys.argv[1])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if moment:
    report, save = StepProgress.on_train_batch_end, checkpoints.atomic_file

    def on_train_batch_end(self, batch, logs=None):
        report(self, batch, logs)
        if [self.epoch, batch] == moment:
            die()

    def atomic_file(path):
        if path.parent.joinpath(f"epoch-{moment[0]}.weights.h5").exists() and moment[1] is None:
            die()
        return save(path)

    StepProgress.on_train_batch_end, checkpoints.atomic_file = on_train_batch_end, atomic_file
for words in calls:
    status = run(lambda: cli.main(words, prog_name="towers", standalone_mode=False))
    if status:
        sys.exit(status)
"""


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    tmp_path: Path,
    tiny_catalog: dict[str, list[str]],
    tiny_retriever: Retriever,
    make_tiny_encoder: Callable[..., object],
) -> None:
    # With dropout, negatives that are mined anew, and held-out queries: all that has a state.
    preset = tmp_path / "preset"
    make_tiny_encoder(dropout=0.2).backbone.save_to_preset(str(preset))
    tiny_retriever.tokenizer.save(preset)
    ids, titles = tiny_catalog["item_id"], tiny_catalog["title"]
    rows = [f"{i},{title}" for i, title in zip(ids, titles, strict=True)]
    (tmp_path / "catalog.csv").write_text("\n".join(["item_id,title", *rows]), "utf-8")
    pairs = [f"{titles[n % 8].split()[0]} {n},{ids[n % 8]}" for n in range(24)]
    (tmp_path / "pairs.csv").write_text("\n".join(["query,item_id", *pairs]), "utf-8")
    config = {
        "encoder": {"preset": str(preset), "query_max_length": 12, "item_max_length": 24},
        "method": "full",
        "lexical": "off",
        "deterministic": True,
        "fit": {
            **{"epochs": 4, "batch_size": 6, "learning_rate": 1e-3, "patience": 9},
            **{"held_out": 0.25, "min_held_out": 2, "hard_negatives": 1, "remine": 2},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")

    def arguments(output: str) -> list[str]:
        return [
            *("train", "--catalog", str(tmp_path / "catalog.csv")),
            *("--interactions", str(tmp_path / "pairs.csv"), "--output", str(tmp_path / output)),
            *("--config", str(tmp_path / "config.json")),
        ]

    def start(moment: list[int | None] | None, *calls: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps([moment, *calls])],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )

    with start(None, arguments("whole"), arguments("again")) as undisturbed:
        for moment in ([3, None], [3, 0]):
            with start(moment, arguments("killed")) as process:
                _, errors = process.communicate(timeout=300)
            assert process.returncode == -signal.SIGKILL, errors[-3000:]
            state = json.loads((tmp_path / "killed/checkpoints/state.json").read_text())
            # The first time the third epoch's weights were there, and the file not yet.
            assert len(state["losses"]) == (2 if moment[1] is None else 3)
        with start(None, arguments("killed")) as process:
            _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        _, errors = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, errors[-3000:]

    whole = Retriever.load(tmp_path / "whole/model").model.get_weights()
    for name in ("again", "killed"):
        other = Retriever.load(tmp_path / name / "model").model.get_weights()
        for weight, there in zip(whole, other, strict=True):
            np.testing.assert_array_equal(weight, there)
    fits = [
        json.loads((tmp_path / name / "metrics.json").read_text())["fit"]
        for name in ("whole", "killed")
    ]
    assert fits[0]["losses"] == fits[1]["losses"]
    assert fits[0]["held_out"] == fits[1]["held_out"]
    assert len(set(fits[0]["losses"])) == 4
