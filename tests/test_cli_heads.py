"""`towers classify` and `towers calibrate` on files, with a tiny encoder."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import expit

from towers import Retriever, TextSettings
from towers.cli import cli, run
from towers.encoding import fast_dtype

PLACES = {
    "Kitchen": ["kettle", "mug", "coffee", "boils water", "travel mug", "lid"],
    "Garden": ["rake", "hose", "garden", "ash handle", "steel tines", "kink"],
}


def write(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Classes


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 short texts of two places, one without label and one without text."""
    rows: list[list[object]] = [["n", "body", "place"]]
    for place, words in PLACES.items():
        rows += [[len(rows), f"{a} and {b}", place] for a, b in itertools.combinations(words, 2)]
        rows += [[len(rows), word, place] for word in words[:3]]
    rows += [[98, "no idea", ""], [99, "", "Garden"]]
    return write(tmp_path_factory.mktemp("reviews") / "reviews.csv", rows)


def fit(reviews: Path, model: object, output: Path) -> tuple[object, ...]:
    return (
        *("classify", "--model", model, "--texts", reviews, "--text-column", "body"),
        *("--label-column", "place", "--folds", 3, "--output", output),
    )


def test_a_classifier_is_fitted_tested_and_used(
    towers: Callable[..., Any], reviews: Path, tiny_preset: str, tmp_path: Path
) -> None:
    head, out = tmp_path / "head", tmp_path / "out.csv"
    answer = towers(*fit(reviews, tiny_preset, head), "--shots-per-class", 8, "--json")
    assert answer.json["classes"] == {"Garden": 18, "Kitchen": 18}
    assert answer.json["shots"] == 16
    assert answer.json["left_out"] == {
        "without_text": 1,
        "without_label": 1,
        "repeated": 0,
        "rare": {},
    }
    quality = answer.json["quality"]
    losses = {name: one["measures"]["log_loss"]["mean"] for name, one in quality.items()}
    assert set(losses) == {"prototype", "linear"}
    assert answer.json["method"] == min(losses, key=lambda name: losses[name])
    for one in quality.values():
        assert one["rows"] == 36
        assert len(one["measures"]["accuracy"]["values"]) == 3
        assert sum(group["weight"] for group in one["reliability"]) == 36
    assert json.loads((head / "metrics.json").read_text()) == answer.json

    used = towers(
        *("classify", "--head", head, "--texts", reviews, "--output", out),
        *("--class-probabilities", "--json"),
    ).json
    assert (used["rows"], used["rows_without_text"], used["measured_rows"]) == (37, 1, 36)
    rows = read(out)
    assert [row["n"] for row in rows] == [row["n"] for row in read(reviews)]
    assert rows[-1]["predicted_place"] == rows[-1]["probability_Garden"] == ""
    # From the files alone: softmax(vectors @ kernel + bias).
    arrays = load_file(head / "head.safetensors")
    retriever = Retriever.from_preset(tiny_preset, text=TextSettings("{body}", 16, 48))
    vectors = retriever.encode_items([row["body"] for row in rows[:-1]], dtype=fast_dtype())
    logits = vectors @ arrays["kernel"] + arrays["bias"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, (garden, kitchen) in zip(rows, expected, strict=False):
        assert float(row["probability_Garden"]) == pytest.approx(garden, abs=2e-3)
        assert float(row["probability_Kitchen"]) == pytest.approx(kitchen, abs=2e-3)
        assert row["predicted_place"] == ("Garden" if garden > kitchen else "Kitchen")
        assert float(row["predicted_place_probability"]) == pytest.approx(
            max(garden, kitchen), abs=2e-3
        )
    right = sum(row["place"] == row["predicted_place"] for row in rows if row["place"])
    assert used["measures"]["accuracy"] == pytest.approx(right / 36)


def test_fitting_again_gives_the_same(
    towers: Callable[..., Any], reviews: Path, tiny_preset: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        command = [*fit(reviews, tiny_preset, folder), "--method", "linear", "--max-length", 12]
        assert towers(*command, "--tower", "item", "--seed", 5).status == 0
    for name in ("head.json", "head.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_report_for_people(
    towers: Callable[..., Any], reviews: Path, tiny_preset: str, tmp_path: Path
) -> None:
    answer = towers(*fit(reviews, tiny_preset, tmp_path / "head"), "--method", "prototype")
    assert answer.status == 0
    assert answer.out.startswith("prototype: accuracy 0.")
    assert "mean of 3 folds ± 95% interval; always 'Garden': 0.500 right" in answer.out
    assert f"prototype head fitted on 36 texts, written to {tmp_path / 'head'}" in answer.out
    assert "left out: 1 rows without text, 1 rows without label" in answer.err
    out = tmp_path / "out.csv"
    answer = towers("classify", "--head", tmp_path / "head", "--texts", reviews, "--output", out)
    assert answer.out.startswith(f"37 texts sorted, written to {out}\n")
    assert "36 labelled: accuracy" in answer.out


def test_a_head_knows_its_model(
    towers: Callable[..., Any],
    reviews: Path,
    tiny_preset: str,
    tmp_path: Path,
    make_tiny_retriever: Callable[..., Retriever],
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_preset, here)
    command = [*fit(reviews, here, tmp_path / "head"), "--folds", 0, "--max-length", 24]
    assert towers(*command).status == 0
    use = ("classify", "--head", tmp_path / "head", "--texts", reviews)
    here.rename(there)
    answer = towers(*use, "--output", tmp_path / "out.csv")
    assert answer.status == 2
    assert str(here) in answer.err
    assert towers(*use, "--output", tmp_path / "out.csv", "--model", there).status == 0
    make_tiny_retriever(7).save(tmp_path / "other")
    answer = towers(*use, "--output", tmp_path / "out.csv", "--model", tmp_path / "other")
    assert answer.status == 2
    assert "is not the model that head" in answer.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--text-column", "text"), "no column 'text'"),
        (("--label-column", "class"), "no column 'class'"),
        (("--text", "{body}"), "give either --text-column or --text"),
        (("--folds", 1), "--folds is 0, or 2 and more"),
        (("--folds", 40), "0 class(es) of 40 or more rows"),
        (("--max-length", 2), "max length 2: expected 3 to 64"),
        (("--max-length", 100), "max length 100: expected 3 to 64"),
        (("--model", "./nowhere"), "'./nowhere' is not a folder"),
        (("--strict",), "column 'place' is empty"),
        (("--class-probabilities",), "--class-probabilities has no effect without --head"),
    ],
)
def test_bad_input_for_a_classifier(
    change: tuple[object, ...],
    message: str,
    towers: Callable[..., Any],
    reviews: Path,
    tiny_preset: str,
    tmp_path: Path,
) -> None:
    answer = towers(*fit(reviews, tiny_preset, tmp_path / "head"), *change)
    assert answer.status == 2
    assert message in answer.err.replace("\n", " ")
    assert not (tmp_path / "head").exists()


def test_bad_input_for_using_a_classifier(
    towers: Callable[..., Any], reviews: Path, tiny_preset: str, tmp_path: Path
) -> None:
    head = tmp_path / "head"
    assert towers(*fit(reviews, tiny_preset, head), "--folds", 0).status == 0
    use = ("classify", "--head", head, "--texts", reviews)
    taken = write(tmp_path / "taken.csv", [["body", "predicted_place"], ["mug", "?"]])
    for command, message in [
        ((*use, "--output", tmp_path / "out.txt"), "a file named *.csv"),
        ((*use, "--output", "o.csv", "--seed", 1), "--seed has no effect with --head"),
        (("classify", "--head", tmp_path, "--texts", reviews, "--output", "o.csv"), "no head"),
        ((*use[:3], "--texts", taken, "--output", "o.csv"), "a column 'predicted_place' already"),
        (fit(reviews, tiny_preset, head), "exists: name another --output"),
        (("classify", "--texts", reviews, "--output", "h"), "--model is needed without --head"),
    ]:
        answer = towers(*command)
        assert answer.status == 2, command
        assert message in answer.err, answer.err
    (head / "head.safetensors").write_bytes(b"\0" * 20)
    answer = towers(*use, "--output", tmp_path / "out.csv")
    assert answer.status == 2
    assert "is damaged" in answer.err


# Clicks


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, tiny_catalog: dict[str, list[str]], tiny_preset: str
) -> Path:
    """A folder with a catalogue, a zero-shot run with words in its score, and shown pairs."""
    folder = tmp_path_factory.mktemp("shop")
    write(
        folder / "catalog.csv",
        [list(tiny_catalog), *map(list, zip(*tiny_catalog.values(), strict=True))],
    )
    words = ["kettle", "mug", "garden", "coffee", "rake", "hose", "cat", "water", "lid", "steel"]
    rng = np.random.default_rng(0)
    rows: list[list[object]] = [["query", "item_id", "clicked", "position"]]
    for number, (a, b) in enumerate(itertools.combinations(words, 2)):
        for item in rng.permutation(len(tiny_catalog["item_id"]))[:4]:
            text = " ".join(column[item] for column in tiny_catalog.values()).lower()
            likely = 0.8 if a in text or b in text else 0.15
            rows.append(
                [f"{a} {b}", tiny_catalog["item_id"][item], int(rng.uniform() < likely), number % 5]
            )
    rows.append(["mug", "unknown", 1, 0])
    write(folder / "shown.csv", rows)
    write(folder / "judged.csv", [["query", "item_id", "grade"], ["boil water", "k1", 1]])
    (folder / "config.toml").write_text(
        f'lexical = 0.4\n[encoder]\npreset = "{tiny_preset}"\nitem_max_length = 24\n', "utf-8"
    )
    arguments = [
        *("train", "--catalog", folder / "catalog.csv", "--interactions", folder / "judged.csv"),
        *("--output", folder / "run", "--config", folder / "config.toml", "--method", "zero-shot"),
    ]
    words = [str(argument) for argument in arguments]
    assert run(lambda: cli.main(words, prog_name="towers", standalone_mode=False)) == 0
    return folder


def calibrate(shop: Path, output: Path) -> tuple[object, ...]:
    return (
        *("calibrate", "--model", shop / "run", "--catalog", shop / "catalog.csv"),
        *("--interactions", shop / "shown.csv", "--click-column", "clicked", "--output", output),
    )


def test_click_probabilities_are_fitted_tested_and_used(
    towers: Callable[..., Any], shop: Path, tmp_path: Path
) -> None:
    head, out = tmp_path / "head", tmp_path / "out.csv"
    extra = ("--numeric", "position", "--categorical", "brand", "--json")
    fitted = towers(*calibrate(shop, head), *extra).json
    shown = read(shop / "shown.csv")
    assert fitted["pairs"] == len(shown) - 1
    assert fitted["clicks"] == sum(row["clicked"] == "1" for row in shown[:-1])
    quality = {name: one["measures"] for name, one in fitted["quality"].items()}
    assert quality["head"]["log_loss"]["mean"] < quality["constant"]["log_loss"]["mean"] - 0.03
    assert quality["head"]["auc"]["mean"] > 0.7
    assert fitted["head"]["numeric"]["lexical"]["weight"] > 0
    assert set(fitted["head"]["numeric"]) == {"cosine", "lexical", "gap", "position"}

    used = towers(
        *("calibrate", "--head", head, "--catalog", shop / "catalog.csv"),
        *("--interactions", shop / "shown.csv", "--output", out, "--json"),
    ).json
    assert used["rows_with_unknown_items"] == 1
    rows = read(out)
    assert rows[-1]["click_probability"] == ""
    probability = np.array([float(row["click_probability"]) for row in rows[:-1]])
    clicked = np.array([row["clicked"] == "1" for row in rows[:-1]])
    assert probability.mean() == pytest.approx(clicked.mean(), abs=0.02)
    assert used["mean_click_probability"] == pytest.approx(probability.mean(), abs=1e-5)
    loss = -np.log(np.where(clicked, probability, 1 - probability)).mean()
    assert used["measures"]["log_loss"] == pytest.approx(loss, abs=1e-4)

    # From head.json alone, with the cosine as the towers give it and no word of the title known.
    record = json.loads((head / "head.json").read_text())["head"]
    retriever = Retriever.load(shop / "run" / "model")
    query = retriever.encode_queries(["zebra"])
    texts = retriever.template.render(
        {
            name: [row[name] for row in read(shop / "catalog.csv")]
            for name in ("title", "brand", "description")
        }
    )
    cosines = (query @ retriever.encode_items(texts, dtype=fast_dtype()).T)[0]
    one = write(tmp_path / "one.csv", [["query", "item_id", "position"], ["zebra", "k1", 3]])
    out = tmp_path / "one_out.csv"
    use = ("calibrate", "--head", head, "--catalog", shop / "catalog.csv", "--interactions", one)
    assert towers(*use, "--output", out).status == 0
    weight = {name: term["weight"] for name, term in record["numeric"].items()}
    logit = record["bias"] + weight["cosine"] * cosines[0] + 3 * weight["position"]
    logit += weight["gap"] * 0.6 * (cosines.max() - cosines[0])
    logit += record["categorical"]["brand"].get("Harrow", 0)
    assert float(read(out)[0]["click_probability"]) == pytest.approx(expit(logit), abs=2e-3)


def test_calibration_for_people(towers: Callable[..., Any], shop: Path, tmp_path: Path) -> None:
    answer = towers(*calibrate(shop, tmp_path / "head"), "--folds", 3)
    assert answer.status == 0, answer.err
    assert answer.out.startswith("head: accuracy 0.")
    assert "always the mean: accuracy 0." in answer.out
    assert "mean of 3 folds of queries" in answer.out
    assert "rows whose item the catalogue lacks: 1, ids: 1 (unknown)" in answer.err
    out = tmp_path / "o.csv"
    answer = towers(
        *("calibrate", "--head", tmp_path / "head", "--catalog", shop / "catalog.csv"),
        *("--interactions", shop / "shown.csv", "--output", out),
    )
    assert answer.out.startswith(f"180 pairs, written to {out}\naccuracy 0.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--click-column", "grade"), "no column 'grade' that says what was clicked"),
        (("--min-grade", 2), "no pair is a click by column 'clicked'"),
        (("--numeric", "hour"), "no column 'hour', neither in"),
        (("--numeric", "brand"), "column 'brand' is 'Harrow', expected a number"),
        (("--categorical", "gap"), "feature 'gap' is there twice"),
        (("--folds", 1), "--folds is 0, or 2 and more"),
        (("--strict",), "ids: 1 (unknown)"),
        (("--model", "nowhere"), "nowhere is no folder"),
    ],
)
def test_bad_input_for_calibration(
    change: tuple[object, ...],
    message: str,
    towers: Callable[..., Any],
    shop: Path,
    tmp_path: Path,
) -> None:
    answer = towers(*calibrate(shop, tmp_path / "head"), *change)
    assert answer.status == 2
    assert message in answer.err.replace("\n", " ")
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize("verb", ["classify", "calibrate"])
def test_help(verb: str, towers: Callable[..., Any]) -> None:
    assert verb in towers("--help").out
    assert "--head" in towers(verb, "--help").out
