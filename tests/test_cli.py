"""The command line: exit codes, what goes where, and what bad input is told.

Verbs run in this process where that shows the same; a process of its own costs seconds.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import ir_measures
import numpy as np
import pytest
import tensorflow as tf

from serving.lexical import LexicalIndex, fuse
from towers.cli import cli, run
from towers.cli.lexical import lexical_scorer
from towers.item_text import ItemTemplate
from towers.retriever import Retriever
from training.lexical_weight import fused

TITLES = ["Red mug", "Garden rake", "Blue mug", "Cat scratching post"]


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list[str]], tiny_preset: str
) -> Path:
    """A folder with a catalogue, judgements and a configuration."""
    folder = tmp_path_factory.mktemp("shop")
    rows = zip(*tiny_catalog.values(), strict=True)
    lines = [",".join(tiny_catalog), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    (folder / "catalog.csv").write_text("\n".join(lines), "utf-8")
    lines = ["query,item_id,grade"]
    lines += ["boil water,k1,2", "boil water,g1,0", "filter coffee,k2,2", "hot coffee,m1,1"]
    lines += ["rake,g1,2", "hose,g2,1", "cat,p 1,1", "dessert,é1,1", "nothing here,k1,0"]
    (folder / "judged.csv").write_text("\n".join(lines), "utf-8")
    config = f'[encoder]\npreset = "{tiny_preset}"\nquery_max_length = 12\nitem_max_length = 24\n'
    (folder / "config.toml").write_text(config + "[fit]\nbatch_size = 4\n", "utf-8")
    return folder


def data(shop: Path) -> tuple[object, ...]:
    return ("--catalog", shop / "catalog.csv", "--interactions", shop / "judged.csv")


@pytest.fixture(scope="module")
def model(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished zero-shot run."""
    output = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", *data(shop), "--output", output, "--config", shop / "config.toml"]
    words = [str(argument) for argument in [*arguments, "--method", "zero-shot"]]
    assert run(lambda: cli.main(words, prog_name="towers", standalone_mode=False)) == 0
    return output


# Help and usage


def test_help_is_at_hand_without_tensorflow() -> None:
    code = (
        "import sys\n"
        "from towers.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    heavy = {'tensorflow', 'keras', 'keras_hub', 'pyarrow'} & set(sys.modules)\n"
        "    print('HEAVY', sorted(heavy))\n"
        "    raise\n"
    )
    for arguments in (["--help"], ["--version"], ["query", "--help"], ["serve", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("HEAVY []\n"), (arguments, done.stdout[-200:])


@pytest.mark.parametrize("verb", ["train", "evaluate", "encode", "export", "serve", "query"])
def test_every_verb_has_help(verb: str, towers: Callable[..., Any]) -> None:
    assert verb in towers("--help").out
    answer = towers(verb, "--help")
    assert answer.status == 0
    assert answer.out.startswith(f"Usage: towers {verb}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: towers"),
        (["fly"], "No such command 'fly'"),
        (["train"], "Missing option '--catalog'"),
        (["train", "--colour", "red"], "No such option"),
        (["train", "--shots", "many"], "'many' is not a valid integer"),
        (["train", "--method", "magic"], "'magic' is not one of 'auto', 'full', 'linear', 'lora'"),
        (["evaluate", "--gains", "0,one"], "expected one number a grade"),
        (["evaluate", "--depth", "0"], "0 is not in the range x>=1"),
        (["export", "--index", "tree"], "'tree' is not one of 'auto', 'exact', 'scann'"),
        (["serve", "--model-base-path", "x", "--poll-seconds", "-1"], "not in the range"),
    ],
)
def test_bad_usage_is_2(arguments: list[str], message: str, towers: Callable[..., Any]) -> None:
    answer = towers(*arguments)
    assert answer.status == 2
    assert message in answer.err
    assert answer.out == ""


def test_encoding_names_the_package_that_it_lacks(
    towers: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find(name)
    )
    answer = towers("encode", "--model", "m", "--catalog", "c.csv", "--output", tmp_path / "v")
    assert answer.status == 2
    assert "needs Apache Beam: pip install 'fewshot-towers[beam]'" in answer.err


# Training and evaluating


@pytest.mark.parametrize(
    ("options", "hint"),
    [((), True), (("--shots", 50), False), (("--method", "linear"), False)],
)
def test_training_on_very_many_pairs_is_said_to_bring_little(
    options: tuple[object, ...],
    hint: bool,
    shop: Path,
    tmp_path: Path,
    towers: Callable[..., Any],
) -> None:
    rows = "".join(f"query {n},k1\n" for n in range(10_001))
    (tmp_path / "many.csv").write_text(f"query,item_id\n{rows}", "utf-8")
    taken = tmp_path / "taken"  # so that nothing is trained
    taken.write_text("")
    answer = towers(
        *("train", "--catalog", shop / "catalog.csv", "--interactions", tmp_path / "many.csv"),
        *("--output", taken, "--config", shop / "config.toml", *options),
    )
    assert answer.status == 2
    assert ("10,001 positive pairs" in answer.err and "--shots 2000" in answer.err) is hint


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ((), "positive pairs: 4 of grade 1, 3 of grade 2; --min-grade 2 takes the best alone"),
        (("--min-grade", 2), None),
    ],
)
def test_training_says_which_grades_count(
    options: tuple[object, ...],
    hint: str | None,
    shop: Path,
    tmp_path: Path,
    towers: Callable[..., Any],
) -> None:
    (tmp_path / "taken").write_text("")  # so that nothing is trained
    arguments = (*data(shop), "--output", tmp_path / "taken", "--config", shop / "config.toml")
    answer = towers("train", *arguments, *options)
    assert answer.status == 2
    if hint is None:
        assert "of grade" not in answer.err
    else:
        assert hint in " ".join(answer.err.split())


def test_train_and_evaluate_print_one_json_object(
    shop: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    output = tmp_path / "run"
    arguments = [*data(shop), "--output", output, "--config", shop / "config.toml"]
    options = ("--method", "full", "--shots", 6, "--epochs", 1, "--seed", 3, "--json")
    trained = towers("train", *arguments, *options)
    assert trained.status == 0, trained.err
    metrics = json.loads(trained.out)
    assert (metrics["output"], metrics["shots"], metrics["method"]) == (str(output), 6, "full")
    assert len(metrics["fit"]["losses"]) == 1
    config = json.loads((output / "config.json").read_text("utf-8"))
    assert (config["seed"], config["fit"]["epochs"], config["fit"]["batch_size"]) == (3, 1, 4)

    report, run_file = tmp_path / "report", tmp_path / "shop.trec"
    judged = towers(
        *("evaluate", "--model", output, *data(shop), "--measures", "nDCG@10, R@5"),
        *("--run-file", run_file, "--depth", 3, "--report", report, "--gains", "0,1,3", "--json"),
    )
    assert judged.status == 0, judged.err
    result = json.loads(judged.out)
    assert set(result["measures"]) == {"nDCG@10", "R@5"}
    assert (result["queries"], result["queries_without_positives"]) == (8, 1)
    assert json.loads((report / "metrics.json").read_text("utf-8")) == result
    assert len((report / "per_query.csv").read_text("utf-8").splitlines()) > 7
    lines = run_file.read_text("utf-8").splitlines()
    assert len(lines) == 8 * 3
    assert len(list(tmp_path.glob("*.queries.tsv"))) == 1

    # All six shots are among the queries that are asked.
    assert result["trained_queries"] == len(
        {line.split(",")[0] for line in (output / "shots.csv").read_text().splitlines()[1:]}
    )
    assert f"the run was trained on {result['trained_queries']} of these 8 queries" in judged.err

    # Item vectors are kept: the second time gives the same, from the file.
    (vectors,) = (output / "item_vectors").glob("*")
    written = vectors.stat().st_mtime_ns
    arguments = ["evaluate", "--model", output, *data(shop), "--measures", "nDCG@10", "--json"]
    again = towers(*arguments, "--gains", "0,1,3")
    assert json.loads(again.out)["measures"]["nDCG@10"] == result["measures"]["nDCG@10"]
    assert vectors.stat().st_mtime_ns == written


def test_a_linear_map_goes_over_the_vectors_of_the_run_beside_it(
    shop: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    """What the untrained towers made of the catalogue is not made again; answers are the same."""
    runs = tmp_path / "runs"

    def trained(name: str, method: str) -> Path:
        arguments = ("--config", shop / "config.toml", "--seed", 3, "--method", method)
        assert towers("train", *data(shop), "--output", runs / name, *arguments).status == 0
        return runs / name

    def measured(run: Path) -> dict[str, float]:
        judged = towers("evaluate", "--model", run, *data(shop), "--json")
        return {name: one["mean"] for name, one in json.loads(judged.out)["measures"].items()}

    alone = trained("linear", "linear")
    without_help = measured(alone)
    shutil.rmtree(alone)
    measured(trained("zero-shot", "zero-shot"))
    (kept,) = runs.glob("*/item_vectors/*")
    again = trained("linear", "linear")
    with_help = measured(again)
    assert list(runs.glob("*/item_vectors/*")) == [kept]
    assert with_help == pytest.approx(without_help, abs=1e-6)


def test_trec_tools_get_the_same_from_the_files(
    shop: Path, model: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    run_file, qrels_file = tmp_path / "shop.trec", tmp_path / "shop.qrels"
    names = ["nDCG@10", "R@5", "RR", "AP"]
    judged = towers(
        *("evaluate", "--model", model, *data(shop), "--measures", ",".join(names), "--json"),
        *("--run-file", run_file, "--qrels-file", qrels_file),
    )
    assert judged.status == 0, judged.err
    ours = json.loads(judged.out)["measures"]
    qrels = list(ir_measures.read_trec_qrels(str(qrels_file)))
    assert {(qrel.query_id, qrel.doc_id, qrel.relevance) for qrel in qrels} == {
        *(("1", "k1", 2), ("1", "g1", 0), ("2", "k2", 2), ("3", "m1", 1), ("4", "g1", 2)),
        *(("5", "g2", 1), ("6", "p%201", 1), ("7", "é1", 1)),
    }
    run = list(ir_measures.read_trec_run(str(run_file)))
    measures = {name: ir_measures.parse_measure(name) for name in names}
    theirs = ir_measures.calc_aggregate(measures.values(), qrels, run)
    for name, measure in measures.items():
        assert ours[name]["mean"] == pytest.approx(theirs[measure], abs=1e-6), name


def test_reports_for_people(shop: Path, model: Path, towers: Callable[..., Any]) -> None:
    answer = towers("evaluate", "--model", model, *data(shop))
    assert answer.status == 0
    assert "nDCG@10" in answer.out
    assert "8 queries, 1 without a positive" in answer.out


def test_files_say_what_their_columns_are_called(
    shop: Path, model: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    catalog, judged = tmp_path / "products.csv", tmp_path / "searches.csv"
    rows = (shop / "catalog.csv").read_text("utf-8")
    catalog.write_text(rows.replace("item_id,title", "sku,Product name", 1), "utf-8")
    rows = (shop / "judged.csv").read_text("utf-8")
    judged.write_text(rows.replace("query,item_id", "term,sku", 1), "utf-8")
    evaluate = ("evaluate", "--model", model, "--json")
    named = (
        *("--catalog", f"{catalog}:item_id=sku,title=Product name"),
        *("--interactions", f"{judged}:query=term,item_id=sku"),
    )
    answer, expected = towers(*evaluate, *named), towers(*evaluate, *data(shop))
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["measures"] == json.loads(expected.out)["measures"]
    answer = towers(*evaluate, "--catalog", f"{catalog}:item_id=SKU", "--interactions", judged)
    assert answer.status == 2
    assert "no column 'SKU' to be read as 'item_id'" in answer.err


def test_unknown_items_are_told_and_strict_refuses(
    shop: Path, model: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    judged = tmp_path / "judged.csv"
    judged.write_text("query,item_id\nboil,k1\nboil,zz9\n", "utf-8")
    arguments = ["evaluate", "--model", model, "--catalog", shop / "catalog.csv"]
    answer = towers(*arguments, "--interactions", judged, "--json")
    assert answer.status == 0
    assert "zz9" in answer.err
    json.loads(answer.out)
    answer = towers(*arguments, "--interactions", judged, "--strict")
    assert answer.status == 2
    assert "zz9" in answer.err


# The lexical score


def test_the_weight_that_training_chose_is_used_by_every_verb(
    shop: Path, model: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    chosen = json.loads((model / "metrics.json").read_text("utf-8"))["lexical"]
    assert chosen["queries"] == 7
    assert chosen["weight"] > 0  # the tiny encoder knows nothing, and "rake" finds a rake

    def weight(verb: str, *options: object, run: Path = model) -> float:
        where = {
            "evaluate": data(shop),
            "export": ("--catalog", shop / "catalog.csv", "--output", tmp_path / "exports"),
        }[verb]
        answer = towers(verb, "--model", run, *where, *options, "--json")
        assert answer.status == 0, answer.err
        return json.loads(answer.out)["lexical_weight"]

    for verb in ("evaluate", "export"):
        assert weight(verb) == weight(verb, "--lexical", "auto") == chosen["weight"]
        assert weight(verb, "--lexical", "off") == 0
        assert weight(verb, "--lexical", 0.35) == 0.35
    manifest = json.loads((tmp_path / "exports" / "1" / "manifest.json").read_text("utf-8"))
    assert manifest["index_kind"] == "exact"

    arguments = [*data(shop), "--config", shop / "config.toml", "--method", "zero-shot"]
    for setting, expected in (("off", 0), (0.15, 0.15)):
        told = tmp_path / f"run {setting}"
        assert towers("train", *arguments, "--output", told, "--lexical", setting).status == 0
        assert weight("evaluate", run=told) == expected
        # It has chosen none: what is taken without shots.
        assert weight("evaluate", "--lexical", "auto", run=told) == 0.25


def test_training_says_which_weight_it_chose_and_why(
    shop: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    answer = towers(
        *("train", *data(shop), "--config", shop / "config.toml", "--method", "zero-shot"),
        *("--output", tmp_path / "run"),
    )
    assert answer.status == 0
    assert re.search(
        r"Lexical weight 0?\.?\d+: nDCG@10 on 7 shot queries among 8 items [01]\.\d{3}, "
        r"[01]\.\d{3} at weight 0, [01]\.\d{3} at 1\n",
        answer.out,
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    assert config["lexical"] == "auto"


def test_what_is_weighed_is_what_is_exported() -> None:
    catalog = SimpleNamespace(column={"title": TITLES, "brand": [None] * 4}.__getitem__)
    template = ItemTemplate("{title}[ {brand}]")
    queries = ["red mug", "gardn rake", "zzz", ""]
    index = LexicalIndex.build({"title": TITLES, "brand": [""] * 4})
    cosine = np.random.default_rng(0).uniform(-1, 1, (4, 4)).astype(np.float32)
    scores = lexical_scorer(template, catalog)(queries)
    assert scores[:2].max(axis=1).tolist() == [1, 1]
    for weight in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(
            fused(cosine, scores, weight),
            fuse(cosine, index.scores(tf.constant(queries)), weight),
            atol=1e-6,
        )


# Bad input

BAD_INPUT = {
    "missing catalogue": (["--catalog", "{shop}/none.csv"], "none.csv"),
    "missing interactions": (["--interactions", "{shop}/none.csv"], "none.csv"),
    "missing column": (["--catalog", "{tmp}/no_title.csv"], "no column 'title'"),
    "unknown format": (["--catalog", "{tmp}/catalog.xlsx"], "unknown file format"),
    "duplicate id": (["--catalog", "{tmp}/twice.csv"], "'k1' in line 4 is already in line 2"),
    "empty title": (["--catalog", "{tmp}/empty.csv"], "line 3: column 'title' is empty"),
    "wrong encoding": (["--catalog", "{tmp}/latin1.csv"], "byte 0xe9 at byte offset 20"),
    "ragged row": (["--catalog", "{tmp}/ragged.csv"], "line 3: expected 2 columns, found 3"),
    "truncated gzip": (["--catalog", "{tmp}/cut.csv.gz"], "the gzip file is truncated"),
    "price is NaN": (["--catalog", "{tmp}/nan.csv"], "line 2: column 'price' is 'NaN'"),
    "empty query": (["--interactions", "{tmp}/silent.csv"], "line 3: column 'query' is empty"),
    "unknown item and --strict": (["--interactions", "{tmp}/half.csv", "--strict"], "in line 3"),
    "no positives": (["--interactions", "{tmp}/negatives.csv"], "no positive pair"),
    "no known item": (["--interactions", "{tmp}/strange.csv"], "zz9"),
    "too many shots": (["--shots", "500"], "cannot draw 500 shots"),
    "no shots": (["--shots", "0"], "shots: Input should be greater than or equal to 1"),
    "bad learning rate": (["--learning-rate", "-1"], "fit.learning_rate: "),
    "missing configuration": (["--config", "{tmp}/none.toml"], "none.toml"),
    "bad configuration": (["--config", "{tmp}/bad.toml"], "fit.epoch: Extra inputs"),
    "unknown encoder": (["--encoder", "{tmp}/nothing"], "is not a folder with a checkpoint"),
    "bad item text": (["--item-text", "{{title"], "item text template '{title'"),
    "unknown column in item text": (["--item-text", "{{colour}}"], "no text column 'colour'"),
    "output folder taken": (["--output", "{shop}"], "exists and is no training run"),
    "finished run": (["--output", "{model}"], "holds a finished run"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_2_and_one_line(
    case: str, shop: Path, model: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    (tmp_path / "no_title.csv").write_text("item_id,name\na,b\n")
    (tmp_path / "catalog.xlsx").write_text("")
    (tmp_path / "twice.csv").write_text("item_id,title\nk1,Kettle\nk2,Pot\nk1,Pan\n")
    (tmp_path / "empty.csv").write_text("item_id,title\nk1,Kettle\nk2, \n")
    (tmp_path / "latin1.csv").write_text("item_id,title\nk1,Caf\u00e9\n", "latin-1")
    (tmp_path / "ragged.csv").write_text("item_id,title\nk1,Kettle\nk2,Pot,20 cm\n")
    packed = gzip.compress(b"item_id,title\n" + b"".join(b"%d,Mug\n" % i for i in range(999)))
    (tmp_path / "cut.csv.gz").write_bytes(packed[:-100])
    (tmp_path / "nan.csv").write_text("item_id,title,price\nk1,Kettle,NaN\n")
    (tmp_path / "silent.csv").write_text("query,item_id\nboil,k1\n,k2\n")
    (tmp_path / "half.csv").write_text("query,item_id\nboil,k1\nboil,zz9\n")
    (tmp_path / "negatives.csv").write_text("query,item_id,grade\nboil,k1,0\n")
    (tmp_path / "strange.csv").write_text("query,item_id\nboil,zz9\n")
    (tmp_path / "bad.toml").write_text("[fit]\nepoch = 3\n")
    options, message = BAD_INPUT[case]
    options = [option.format(shop=shop, model=model, tmp=tmp_path) for option in options]
    output = [] if "--output" in options else ["--output", tmp_path / "run"]
    config = [] if "--config" in options else ["--config", shop / "config.toml"]
    answer = towers("train", *data(shop), *config, *output, *options, "--json")
    assert answer.status == 2, answer.err
    assert answer.out == ""
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in answer.err
    assert not (tmp_path / "run").exists()


def test_evaluating_what_is_no_run(shop: Path, tmp_path: Path, towers: Callable[..., Any]) -> None:
    answer = towers("evaluate", "--model", shop, *data(shop))
    assert (answer.status, answer.out) == (2, "")
    assert "holds no finished training run" in answer.err
    answer = towers("evaluate", "--model", tmp_path / "none", *data(shop))
    assert answer.status == 2
    assert "is no folder" in answer.err


def test_measures_that_do_not_exist(shop: Path, model: Path, towers: Callable[..., Any]) -> None:
    answer = towers("evaluate", "--model", model, *data(shop), "--measures", "nDCG@10,speed@3")
    assert answer.status == 2
    assert "speed@3" in answer.err


def test_no_export_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, towers: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = towers("query", "kettle")
    assert answer.status == 2
    assert "name the model with --model" in answer.err


def test_explaining_without_a_catalogue(towers: Callable[..., Any]) -> None:
    answer = towers("query", "kettle", "--model", "shop", "--explain", "runs/first")
    assert (answer.status, answer.out) == (2, "")
    assert "--explain needs --catalog" in answer.err


@pytest.mark.parametrize("options", [["--server", "localhost"], ["--rest", "--server", "x:y"]])
def test_what_is_no_server_address_is_2(options: list[str], towers: Callable[..., Any]) -> None:
    answer = towers("query", "kettle", "--model", "shop", *options)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith(f"Error: '{options[-1]}' is not the address of a ")
    assert "expected HOST:PORT" in answer.err


def test_a_server_that_is_not_there_is_1(towers: Callable[..., Any]) -> None:
    arguments = ["query", "kettle", "--model", "shop", "--server", "localhost:1", "--timeout", "2"]
    for transport in ([], ["--rest"]):
        answer = towers(*arguments, *transport)
        assert (answer.status, answer.out) == (1, "")
        assert answer.err.startswith("Failed: ")
        assert len(answer.err.strip().splitlines()) == 1


def test_a_catalogue_of_one_item_goes_all_the_way(
    shop: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    catalog, judged = tmp_path / "one.csv", tmp_path / "judged.csv"
    catalog.write_text("item_id,title\nk1,Kettle\n")
    judged.write_text("query,item_id\nboil water,k1\n")
    files = ("--catalog", catalog, "--interactions", judged)
    config = ("--config", shop / "config.toml", "--epochs", 1)
    assert towers("train", *files, "--output", tmp_path / "run", *config).status == 0
    answer = towers("evaluate", "--model", tmp_path / "run", *files, "--json")
    assert json.loads(answer.out)["measures"]["nDCG@10"]["mean"] == 1
    answer = towers(  # k is larger than the catalogue: rows are padded
        *("export", "--model", tmp_path / "run", "--catalog", catalog, "--k", 20),
        *("--output", tmp_path / "saved_models" / "one", "--json"),
    )
    assert answer.status == 0, answer.err
    facts = json.loads(answer.out)
    assert (facts["item_count"], facts["k"]) == (1, 20)


# What ends a verb


def test_failures_are_1_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("disk on fire")

    assert run(fail) == 1
    error = capsys.readouterr().err
    assert error.startswith("Failed: RuntimeError: disk on fire\n")
    assert "Traceback" not in error
    monkeypatch.setenv("TOWERS_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        run(fail)


def test_a_file_that_ends_too_early_is_no_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def read() -> None:
        raise EOFError("no data left")

    assert run(lambda: read.main([], standalone_mode=False)) == 1
    assert "Failed: EOFError: no data left\n" in capsys.readouterr().err


def test_an_interrupted_training_says_so_and_goes_on_later(
    shop: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    run_folder = tmp_path / "run"
    arguments = ["train", *data(shop), "--config", shop / "config.toml", "--epochs", 3]
    arguments += ["--output", run_folder]
    running = subprocess.Popen(
        [sys.executable, "-m", "towers", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )
    said = ""
    for line in running.stderr:
        said += line
        if "judged pairs" in line:  # the data are read: the work begins
            running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    running.stderr.close()
    assert said.endswith("Interrupted.\n")
    assert "Traceback" not in said
    assert not (run_folder / "metrics.json").exists()
    assert [path for path in run_folder.rglob("*") if path.suffix == ".tmp"] == []
    answer = towers(*arguments)
    assert answer.status == 0, answer.err
    assert Retriever.load(run_folder / "model").embedding_dim == 32


# Python drops what a destructor or a callback raises, a KeyboardInterrupt too.
_DROPPED = """
import signal, sys, time
from towers.cli import run
from towers.cli.interrupt import insistent_interrupts

class Callback:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def work():
    with insistent_interrupts():
        Callback()
        time.sleep(60)

sys.exit(run(work))
"""


def test_an_interrupt_that_is_dropped_comes_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DROPPED], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_exit_codes_of_the_process(
    shop: Path, model: Path, towers_process: Callable[..., Any]
) -> None:
    answer = towers_process("evaluate", "--model", model, *data(shop), "--json")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["queries"] == 8
    assert answer.out.count("\n") == 1
    answer = towers_process(
        "train", "--catalog", shop / "none.csv", "--interactions", "x.csv", "--output", "x"
    )
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("Error: ")
    assert len(answer.err.strip().splitlines()) == 1


def test_the_model_of_a_run_is_a_retriever(model: Path) -> None:
    assert Retriever.load(model / "model").embedding_dim == 32
