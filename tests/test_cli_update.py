"""`towers update` on the sample shop: from one run to the next, or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from towers import Recommender
from towers.cli import cli, run

SHOP = Path(__file__).parent.parent / "examples" / "shop"
CATALOG = ("--catalog", SHOP / "catalog.csv")
NEW = ("--interactions", SHOP / "valid.csv")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_preset: str) -> Path:
    """Zero-shot towers that recommend, with words."""
    folder = tmp_path_factory.mktemp("first")
    config = folder / "config.toml"
    config.write_text("[encoder]\nquery_max_length = 12\nitem_max_length = 16\n")
    data = ("--interactions", SHOP / "train.csv", "--histories", SHOP / "histories.jsonl")
    how = ("--encoder", tiny_preset, "--method", "zero-shot", "--lexical", 0.5, "--config", config)
    words = [*map(str, ("train", *CATALOG, *data, *how, "--output", folder / "run"))]
    assert run(lambda: cli.main(words, prog_name="towers", standalone_mode=False)) == 0
    return folder / "run"


def test_an_update_is_a_run_like_any_other(
    first: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    output, judged = tmp_path / "second", SHOP / "test.csv"
    quick = ("--epochs", 1, "--max-drop", 1, "--judgements", judged, "--measure", "R@10")
    answer = towers("update", "--model", first, *CATALOG, *NEW, "--output", output, *quick)
    assert answer.status == 0, answer.err
    facts = json.loads((output / "metrics.json").read_text("utf-8"))
    gate = facts["update"]["gate"]
    assert f"{gate['before']:.4f} before, {gate['after']:.4f} after" in answer.out
    assert answer.out.endswith(f"Model written to {output}\n")
    for model, value in ((first, gate["before"]), (output, gate["after"])):
        evaluation = towers(
            *("evaluate", "--model", model, *CATALOG, "--interactions", judged),
            *("--measures", "R@10", "--json"),
        ).json["measures"]["R@10"]
        assert value == pytest.approx(evaluation["mean"], abs=1e-6)
        assert gate["queries"] == evaluation["queries"]
    assert facts["recommendation"]["carried_over_from"] == str(first)
    before, after = (Recommender.load(folder / "recommender") for folder in (first, output))
    assert before.weights == after.weights
    export = towers(
        "export", "--model", output, *CATALOG, "--output", tmp_path / "saved" / "shop", "--json"
    ).json
    assert {"search", "recommend"} <= set(export["signatures"])
    assert export["encoder_fingerprint"] == after.encoder_fingerprint


def test_a_worse_version_is_refused(
    first: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    """Words rank the sample shop far better than a random encoder does, which is left alone."""
    output = tmp_path / "second"
    command = ("update", "--model", first, *CATALOG, *NEW, "--output", output, "--epochs", 1)
    answer = towers(*command, "--lexical", "off", "--json")
    assert answer.status == 1
    facts = json.loads(answer.out)
    assert facts["output"] is None
    gate = facts["update"]["gate"]
    assert gate["after"] < gate["before"] - 0.005
    assert f"Refused: {facts['refused']}" in answer.err.replace("\n", " ")
    assert f"{gate['before']:.4f} to {gate['after']:.4f}" in facts["refused"]
    assert not output.exists()
    assert answer.out.count("\n") == 1


def test_wrong_input_is_named(first: Path, tmp_path: Path, towers: Callable[..., Any]) -> None:
    command = ("update", "--model", first, *CATALOG, *NEW, "--output", tmp_path / "second")
    for words, message in (
        (("--max-drop", -1), "update.max_drop"),
        (("--method", "linear"), "'linear' is not one of 'full', 'lora'"),
        (("--judgements", SHOP / "histories.jsonl"), "histories.jsonl"),
        (("--measure", "Coverage@10"), "no value for a single query"),
    ):
        answer = towers(*command, *words)
        assert (answer.status, message in answer.err) == (2, True), answer.err
    missing = towers("update", "--model", tmp_path / "none", *CATALOG, *NEW, "--output", "x")
    assert missing.status == 2
    assert "is no folder" in missing.err
    assert not (tmp_path / "second").exists()
