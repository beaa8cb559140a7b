"""`towers train` without interactions, and `towers tune`, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from towers.cli import cli, run


@pytest.fixture
def shop(tmp_path: Path, tiny_catalog: dict[str, list[str]], tiny_preset: str) -> Path:
    rows = list(zip(tiny_catalog["item_id"], tiny_catalog["title"], strict=True))
    (tmp_path / "catalog.csv").write_text(
        "item_id,title\n" + "".join(f'{item},"{title}"\n' for item, title in rows), "utf-8"
    )
    judged = "".join(f"query {n},{item}\n" for n, (item, _) in enumerate(rows))
    (tmp_path / "judged.csv").write_text("query,item_id\n" + judged, "utf-8")
    encoder = f'[encoder]\npreset = "{tiny_preset}"\nquery_max_length = 12\nitem_max_length = 24\n'
    (tmp_path / "config.toml").write_text(encoder, "utf-8")
    search = '[search]\nmethod = ["linear", "zero-shot"]\n'
    (tmp_path / "search.toml").write_text(f'method = "linear"\n{encoder}{search}', "utf-8")
    return tmp_path


def call(*arguments: object) -> int:
    words = [str(argument) for argument in arguments]
    return run(lambda: cli.main(words, prog_name="towers", standalone_mode=False))


def test_a_catalogue_alone_goes_to_an_export(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = ("--catalog", shop / "catalog.csv")
    config = ("--config", shop / "config.toml")
    assert call("train", *catalog, *config, "--output", shop / "run", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["method"], metrics["shots"], metrics["lexical"]["weight"]) == (
        "zero-shot",
        0,
        0.25,
    )
    output = ("--output", shop / "saved_models" / "shop")
    assert call("export", *catalog, "--model", shop / "run", *output, "--json") == 0
    assert json.loads(capsys.readouterr().out)["item_count"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "full"), "method full learns from pairs of a query and its item"),
        (("--shots", 8), "shots are drawn from interactions"),
        (("--shots", 0), "shots: Input should be greater than or equal to 1"),
        (("--strict",), "--strict and --min-grade need --interactions"),
    ],
)
def test_what_needs_interactions_is_2(
    options: tuple[object, ...], message: str, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--catalog", shop / "catalog.csv", "--config", shop / "config.toml")
    assert call("train", *files, "--output", shop / "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (shop / "run").exists()


def test_a_search_and_the_training_it_is_for(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    data = ("--catalog", shop / "catalog.csv", "--interactions", shop / "judged.csv")
    search = ("--config", shop / "search.toml", "--output", shop / "search")
    assert call("tune", *data, *search, "--trials", 2, "--shots", 6, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (len(result["trials"]), result["queries"]) == (2, 6)
    assert result["trials"][0]["fields"] == {"method": "linear"}
    assert call("tune", *data, *search, "--trials", 2, "--shots", 6) == 0  # nothing left to do
    assert "best of 2 trials" in capsys.readouterr().out
    best = ("--config", shop / "search" / "best.toml", "--output", shop / "run", "--json")
    assert call("train", *data, *best) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["shots"], metrics["method"]) == (6, result["best"]["fields"]["method"])


def test_a_configuration_without_a_search_is_2(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--catalog", shop / "catalog.csv", "--interactions", shop / "judged.csv")
    where = ("--config", shop / "config.toml", "--output", shop / "search")
    assert call("tune", *data, *where) == 2
    assert "config.toml: nothing to search over" in capsys.readouterr().err
