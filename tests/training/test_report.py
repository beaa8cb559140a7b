"""`towers report` from files to page, with the tiny encoder; the oracle is train and evaluate."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from towers.cli import cli, run
from towers.cli.lexical import lexical_scorer
from towers.encoding import fast_dtype
from training.catalog import Catalog
from training.config import TrainConfig
from training.interactions import Interactions
from training.report import Plan, Task, build_report
from training.report.cells import Cell
from training.report.sentence_transformers import warm_up_steps
from training.train import train

SYSTEMS = ("--methods", "zero-shot,linear", "--baselines", "zero-shot,hybrid,bm25")


def call(*arguments: object) -> int:
    """Runs a verb in this process, as `main` does."""
    words = [str(argument) for argument in arguments]
    return run(lambda: cli.main(words, prog_name="towers", standalone_mode=False))


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list[str]], tiny_preset: str
) -> Path:
    """A folder with a catalogue, interactions, judgements and a configuration."""
    folder = tmp_path_factory.mktemp("my shop")
    with (folder / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([tiny_catalog, *zip(*tiny_catalog.values(), strict=True)])
    train = ["boil,k1,2", "boil,g1,0", "filter coffee,k2,2", "hot coffee,m1,1", "rake,g1,2"]
    train += ["hose,g2,1", "cat,p 1,1", "dessert,é1,1", "mug,m2,2", "mug,m1,1", "torch,é1,2"]
    train += [f"number {i},{tiny_catalog['item_id'][i % 8]},1" for i in range(30)]
    test = ["kettle,k1,2", "kettle,k2,1", "red,m2,1", "garden,g1,2", "garden,g2,2", "no,k1,0"]
    test += ["boil water fast,k1,2", "boil water fast,g2,0", "scratching,p 1,2"]
    for name, rows in (("train", train), ("test", test)):
        lines = ["query,item_id,grade", *rows]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    config = f'[encoder]\npreset = "{tiny_preset}"\nquery_max_length = 12\nitem_max_length = 24\n'
    (folder / "config.toml").write_text(config + "[fit]\nepochs = 2\nbatch_size = 4\n", "utf-8")
    return folder


def data(shop: Path) -> tuple[object, ...]:
    files = ("--catalog", shop / "catalog.csv", "--train", shop / "train.csv")
    return (*files, "--test", shop / "test.csv", "--config", shop / "config.toml")


@pytest.fixture(scope="module")
def output(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report: two draws of four shots."""
    folder = tmp_path_factory.mktemp("reports") / "first"
    arguments = ("report", *data(shop), *SYSTEMS, "--shots", "0,4", "--seeds", 1)
    assert call(*arguments, "--output", folder) == 0
    return folder


@pytest.fixture(scope="module")
def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text("utf-8"))


def cell(output: Path, system: str, shots: int, seed: int) -> dict[str, Any]:
    (path,) = (output / "cells").glob(f"{system}-{shots}-{seed}-*.json")
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(("system", "seed"), [("linear", 1), ("zero-shot", 0)])
def test_a_cell_is_what_train_and_evaluate_say(
    system: str, seed: int, shop: Path, output: Path, tmp_path: Path
) -> None:
    compare_with_train_and_evaluate(cell(output, system, 4, seed), shop, tmp_path)


def compare_with_train_and_evaluate(ours: dict[str, Any], shop: Path, folder: Path) -> None:
    """The oracle: the verbs that a user would have run instead."""
    settings = ours["identity"]["settings"]
    files = ("--catalog", shop / "catalog.csv", "--interactions")
    options = [
        part for name in ("shots", "seed", "method") for part in (f"--{name}", settings[name])
    ]
    options += ["--config", shop / "config.toml", "--output", folder / "run"]
    assert call("train", *files, shop / "train.csv", *options) == 0
    metrics = json.loads((folder / "run" / "metrics.json").read_text("utf-8"))
    assert ours["lexical_weight"] == metrics["lexical"]["weight"]
    fit = metrics["fit"] or {"trained_parameters": 0}
    assert ours["trained_parameters"] == fit["trained_parameters"]
    rankings = {"dense": ("--lexical", "off"), "hybrid": ()}
    for view, lexical in rankings.items():
        judged = ("evaluate", "--model", folder / "run", *files, shop / "test.csv", *lexical)
        assert call(*judged, "--measures", "nDCG@10", "--report", folder / view) == 0
        with (folder / view / "per_query.csv").open(encoding="utf-8", newline="") as file:
            theirs = [row["nDCG@10"] for row in csv.DictReader(file)]
        expected = [float(value) if value else None for value in theirs]
        assert ours["views"][view]["values"] == pytest.approx(expected, abs=1e-6)
        assert expected.count(None) == 1  # "no" has nothing to find


def test_baselines_are_what_evaluate_says(shop: Path, output: Path, tmp_path: Path) -> None:
    files = ("--catalog", shop / "catalog.csv", "--interactions")
    options = ("--method", "zero-shot", "--config", shop / "config.toml")
    assert call("train", *files, shop / "train.csv", *options, "--output", tmp_path / "run") == 0
    untrained, words = cell(output, "zero-shot", 0, 0), cell(output, "bm25", 0, 0)
    assert untrained["lexical_weight"] == 0.25
    for ranking, lexical in (
        (untrained["views"]["dense"], 0),
        (untrained["views"]["hybrid"], 0.25),
        (words["views"]["lexical"], 1),
    ):
        folder = tmp_path / f"at {lexical}"
        judged = ("evaluate", "--model", tmp_path / "run", *files, shop / "test.csv")
        assert call(*judged, "--lexical", lexical, "--report", folder) == 0
        measured = json.loads((folder / "metrics.json").read_text("utf-8"))["measures"]["nDCG@10"]
        values = [value for value in ranking["values"] if value is not None]
        assert sum(values) / len(values) == pytest.approx(measured["mean"], abs=1e-9)


def test_report_holds_every_system_and_draw(report: dict[str, Any], output: Path) -> None:
    points = {(p["view"], p["system"], p["shots"]): p for p in report["points"]}
    assert set(points) == {
        ("dense", "zero-shot", 0),
        ("hybrid", "zero-shot", 0),
        ("lexical", "bm25", 0),
        ("dense", "linear", 4),
        ("hybrid", "zero-shot", 4),
        ("hybrid", "linear", 4),
    }
    drawn = points["hybrid", "linear", 4]
    for seed, value in zip(drawn["seeds"], drawn["values"], strict=True):
        values = cell(output, "linear", 4, seed)["views"]["hybrid"]["values"]
        assert value == pytest.approx(sum(v for v in values if v is not None) / 5)
    assert drawn["seeds"] == [0, 1]
    # Towers alone have two baselines, with words three.
    assert len(report["tests"]) == 1 * 2 + 2 * 3
    assert report["cells"] == [6, 6]
    assert not (output / "work").exists()


def test_command_on_the_page_makes_the_same_report(
    report: dict[str, Any], output: Path, tmp_path: Path
) -> None:
    words = shlex.split(report["command"])
    assert words[:2] == ["towers", "report"]
    shutil.copytree(output / "cells", tmp_path / "again" / "cells")
    words[words.index("--output") + 1] = str(tmp_path / "again")
    assert call(*words[1:], "--finished-only") == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text("utf-8"))
    assert again["points"] == report["points"]
    assert again["tests"] == report["tests"]
    assert again["summary"] == report["summary"]


# Stopping and going on


def test_a_finished_report_measures_nothing_again_and_more_draws_are_added(
    shop: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "report"
    shutil.copytree(output / "cells", folder / "cells")
    before = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}
    arguments = ("report", *data(shop), *SYSTEMS, "--output", folder)
    capsys.readouterr()
    assert call(*arguments, "--shots", "0,4", "--seeds", 1) == 0
    assert " of 6]" not in capsys.readouterr().err
    systems = ("--methods", "zero-shot", "--baselines", "zero-shot")
    more = ("--shots", "4", "--seeds", 2, *systems)
    assert call(*("report", *data(shop), *more, "--output", folder)) == 0
    told = capsys.readouterr().err
    assert re.findall(r"zero-shot, 4 shots, seed (\d)", told) == ["2", "3"]
    after = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}
    assert len(after) == len(before) + 2
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("method", "stopped"),
    [
        pytest.param("linear", "while weighing words", marks=pytest.mark.slow),
        ("linear", "before the evaluation"),
        pytest.param("bitfit", "in the second epoch", marks=pytest.mark.slow),
        pytest.param("auto", "while choosing the method", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_report_goes_on_to_the_same_numbers(
    method: str, stopped: str, shop: Path, tmp_path: Path
) -> None:
    items = Catalog.read(shop / "catalog.csv")
    judged = [Interactions.read(shop / f"{name}.csv", items) for name in ("train", "test")]
    task = Task(TrainConfig.read(shop / "config.toml"), items, *judged, dtype=fast_dtype())
    plan = Plan(methods=(method,), shots=(33,), seeds=1, baselines=("zero-shot",))
    folder = tmp_path / "report"
    stages: list[str] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        late = done > total / 2
        if stage == "Training" and late and stopped == "in the second epoch":
            raise KeyboardInterrupt
        if stage == "Choosing the method" and late and done < total:
            raise KeyboardInterrupt
        if stage == "Choosing the lexical weight" and method == "linear":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_report(task, plan, folder, lexical=lexical_scorer, progress=interrupt)
    (left,) = (folder / "work").iterdir()
    assert left.name.startswith(f"{method}-33-0")
    assert len(list((folder / "cells").iterdir())) == 1
    if stopped == "before the evaluation":
        config = task.config_of(Cell(method, 33, 0))
        train(config, items, task.train, left, lexical=lexical_scorer)
    report = build_report(
        task,
        plan,
        folder,
        lexical=lexical_scorer,
        progress=lambda stage, done, total: stages.append(stage),
    )
    again = {"Training", "Choosing the method"} & set(stages)
    assert bool(again) == (stopped != "before the evaluation")
    assert not (folder / "work").exists()
    resumed = cell(folder, method, 33, 0)
    assert resumed["seconds"] is None
    assert "1 trainings were interrupted and taken up" in "".join(report.notes)
    compare_with_train_and_evaluate(resumed, shop, tmp_path)
    chosen = resumed["training"]["choice"]
    assert report.costs[0].methods == ({chosen["method"]: 1} if method == "auto" else {})


@pytest.mark.slow
def test_a_killed_report_goes_on(shop: Path, output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    arguments = ["report", *data(shop), *SYSTEMS, "--shots", "0,4", "--seeds", 1]
    command = [sys.executable, "-m", "towers", *map(str, arguments), "--output", str(folder)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in running.stderr:
        if "[4 of 6]" in line:
            running.send_signal(signal.SIGKILL)
    running.wait(timeout=60)
    running.stderr.close()
    kept = {path.name: path.read_bytes() for path in (folder / "cells").glob("*.json")}
    assert len(kept) >= 4
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert {name: (folder / "cells" / name).read_bytes() for name in kept} == kept
    one, other = (json.loads((where / "report.json").read_text()) for where in (folder, output))
    for point, same in zip(one["points"], other["points"], strict=True):
        assert point["values"] == pytest.approx(same["values"], abs=1e-6)


# What it says


def test_one_json_object_on_stdout(
    shop: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("report", *data(shop), *SYSTEMS, "--shots", "0,4", "--seeds", 1)
    capsys.readouterr()
    assert call(*arguments, "--output", output, "--json") == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert answer["page"] == str(output / "report.html")
    assert answer["summary"][0].startswith("Best with 4 shots: ")


def test_shots_that_the_data_lack_are_left_out_by_default(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("report", *data(shop), "--methods", "zero-shot", "--baselines", "bm25")
    assert call(*arguments, "--output", tmp_path / "report", "--finished-only") == 2
    told = capsys.readouterr().err
    assert "Not measured with 128 and 512 and 2,000 shots: there are 40 pairs." in told


def test_without_words_there_is_one_ranking(shop: Path, tmp_path: Path) -> None:
    arguments = ("report", *data(shop), "--methods", "linear", "--baselines", "zero-shot,hybrid")
    folder = tmp_path / "report"
    options = ("--shots", "4", "--seeds", 1, "--lexical", "off", "--output", folder)
    assert call(*arguments, *options) == 0
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert {point["view"] for point in report["points"]} == {"dense"}
    assert {test["baseline"] for test in report["tests"]} == {"zero-shot"}
    assert (folder / "report.html").read_text("utf-8").count("<svg") == 1


# The peer


def test_a_missing_peer_is_told_and_refused_by_name(
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "sentence_transformers" else find(name, *rest),
    )
    arguments = ("report", *data(shop), "--methods", "zero-shot", "--shots", "4", "--seeds", 1)
    assert call(*arguments, "--output", tmp_path / "report") == 0
    missing = "sentence-transformers is not installed: pip install 'fewshot-towers[bench]'"
    note = f"sentence-transformers was not measured: {missing}."
    assert note in capsys.readouterr().err
    assert note.replace("'", "&#39;") in (tmp_path / "report" / "report.html").read_text("utf-8")
    named = ("--baselines", "sentence-transformers", "--output", tmp_path / "other")
    assert call(*arguments, *named) == 2
    assert f"--baselines sentence-transformers: {missing}" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("pairs", "steps"),
    # Five epochs of one batch: half a step, which is none; of 2: 10 steps; of 16; of 17.
    [(8, 0), (32, 0), (33, 1), (64, 1), (512, 8), (513, 8), (640, 10)],
)
def test_the_peer_warms_up_for_a_tenth_of_its_steps(pairs: int, steps: int) -> None:
    assert warm_up_steps(pairs) == steps
    assert isinstance(warm_up_steps(pairs), int)  # a share below 1 is one in transformers 5 alone


@pytest.mark.slow
def test_the_peer_is_measured_as_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = pytest.importorskip("sentence_transformers")
    pytest.importorskip("datasets")
    from towers.checkpoint import resolve_preset

    shop = Path(__file__).parents[2] / "examples" / "shop"
    files = ("--catalog", shop / "catalog.csv", "--train", shop / "train.csv")
    options = ("--methods", "zero-shot", "--shots", "8", "--seeds", 1, "--precision", "float32")
    arguments = ("report", *files, "--test", shop / "valid.csv", *options)
    assert call(*arguments, "--output", tmp_path, "--json") == 0
    json.loads(capsys.readouterr().out)
    measured = cell(tmp_path, "sentence-transformers", 8, 0)
    model = library.SentenceTransformer(resolve_preset("all-MiniLM-L6-v2"))
    assert measured["trained_parameters"] == sum(weight.numel() for weight in model.parameters())
    assert {"sentence-transformers", "torch", "keras"} <= set(measured["packages"])
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    means = {(p["view"], p["system"], p["shots"]): p["mean"] for p in report["points"]}
    peer = means["dense", "sentence-transformers", 8]
    # One epoch is one step, without a warm-up: five small steps from zero-shot.
    assert peer == pytest.approx(means["dense", "zero-shot", 0], abs=0.05)
    assert peer != means["dense", "zero-shot", 0]
    assert means["hybrid", "sentence-transformers", 8] > 0
    assert any(test["baseline"] == "sentence-transformers" for test in report["tests"])


# Bad input

BAD_INPUT = {
    "too many shots": (["--shots", "4,500"], "train.csv: cannot draw 500 shots; pairs of grade 1"),
    "shots that are no numbers": (["--shots", "8,many"], "'8,many' is no list of numbers, as in"),
    "negative shots": (["--shots", "-8"], "'-8' is no list of numbers"),
    "no shots": (["--shots", "0"], "shots 0: expected numbers of pairs, one of them above 0"),
    "unknown method": (["--methods", "magic"], "unknown method 'magic'; there are zero-shot, "),
    "unknown baseline": (["--baselines", "bm26"], "unknown baseline 'bm26'; there are zero-shot"),
    "method twice": (["--methods", "full,full"], "methods full, full: name each once"),
    "no seeds": (["--seeds", "0"], "0 is not in the range x>=1"),
    "unknown measure": (["--measure", "speed@3"], "unknown measure 'speed@3'"),
    "not by query": (["--measure", "Coverage@10"], "Coverage@10 is one number for all queries"),
    "gains": (["--gains", "0,one"], "expected one number a grade"),
    "too few gains": (["--gains", "0,1"], "grade 2 is among the judgements and has no gain"),
    "no positives": (["--min-grade", "3"], "train.csv: no positive pair"),
    "missing file": (["--test", "{tmp}/none.csv"], "none.csv"),
    "missing configuration": (["--config", "{tmp}/none.toml"], "none.toml"),
    "folder taken": (["--output", "{shop}"], "exists and is no report: name another --output"),
    "a file": (["--output", "{shop}/train.csv"], "exists and is no report"),
    "nothing finished": (["--finished-only"], "holds no finished measurement of these data"),
    "bad lexical weight": (["--lexical", "2"], "'2' is not auto, off or a number from 0 to 1"),
    "encoder": (["--config", "{tmp}/encoder.toml"], "is not a folder with a checkpoint"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_2_and_says_what_would_be_right(
    case: str, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "encoder.toml").write_text('[encoder]\npreset = "/nothing/here"\n', "utf-8")
    options, message = BAD_INPUT[case]
    options = [option.format(shop=shop, tmp=tmp_path) for option in options]
    defaults = ("--methods", "zero-shot", "--baselines", "bm25", "--output", tmp_path / "report")
    assert call("report", *data(shop), *defaults, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err
    assert not (tmp_path / "report").exists()


def test_a_package_that_is_missing_is_named(
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "jinja2" else find(name, *rest),
    )
    assert call("report", *data(shop), "--output", tmp_path / "report") == 2
    expected = "towers report needs Jinja2: pip install 'fewshot-towers[report]'"
    assert expected in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: towers report")
    assert "--finished-only" in text
    assert call("--help") == 0
    assert "report" in capsys.readouterr().out
