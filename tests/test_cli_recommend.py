"""Histories on the command line: train, evaluate, export, recommend."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from towers import Recommender, Retriever
from towers.cli import cli, run

SHOP = Path(__file__).parent.parent / "examples" / "shop"
CATALOG = ("--catalog", SHOP / "catalog.csv")
HISTORIES = ("--histories", SHOP / "histories.jsonl")
REVIEWS = ("--reviews", SHOP / "reviews.csv")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    make_tiny_retriever: Callable[..., Retriever],
    make_tiny_preset: Callable[[Retriever], str],
) -> Path:
    folder = tmp_path_factory.mktemp("people")
    preset = make_tiny_preset(make_tiny_retriever(layers=2))  # for which reviews have a weight
    config = folder / "config.toml"
    config.write_text("[encoder]\nquery_max_length = 12\nitem_max_length = 16\n")
    lines = (SHOP / "histories.jsonl").read_text().splitlines()
    users = [(of["user_id"], of["items"][0][:3]) for of in map(json.loads, lines)]
    # Members of one club or another, by what they took first; the last of them of none.
    rows = [f"{user},{place},{club}" for place, (user, club) in enumerate(users[:-1])]
    (folder / "users.csv").write_text("\n".join(["user_id,age,club", *rows, f"{users[-1][0]},,"]))
    words = ("train", *CATALOG, *HISTORIES, *REVIEWS, "--output", folder / "run")
    words += ("--users", folder / "users.csv")
    words += ("--encoder", preset)
    command = [*map(str, words), "--config", str(config), "--json"]
    assert run(lambda: cli.main(command, prog_name="towers", standalone_mode=False)) == 0
    return folder


def test_train_writes_a_recommender(trained):
    metrics = json.loads((trained / "run" / "metrics.json").read_text())["recommendation"]
    assert metrics["users"] == 105
    assert metrics["histories"]["sha256"]
    assert metrics["reviews"]["sha256"]
    assert metrics["reviewers"] == 61  # who wrote of an item that was not their last
    assert metrics["log_likelihood"] > metrics["log_likelihood_uniform"]
    recommender = Recommender.load(trained / "run" / "recommender")
    club = metrics["context"]["club"]
    assert club["users"] == 104
    assert {"KIT", "PET"} <= set(club["values"])
    assert club["alone"] > 0
    assert len(metrics["context"]["age"]["edges"]) == 4
    assert recommender.weights.co_occurrence + recommender.weights.words > 0


def test_evaluate_takes_the_last_item_away(trained, towers, tmp_path):
    answer = towers(
        *("evaluate", "--model", trained / "run", *CATALOG, *HISTORIES),
        *("--report", tmp_path / "report", "--json"),
    )
    assert answer.status == 0, answer.err
    facts = json.loads(answer.out)
    assert facts == json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert facts["users"] == 105
    assert facts["measures"]["R@10"]["mean"] > 10 / 545  # of an untrained encoder, so mostly words
    again = towers("evaluate", "--model", trained / "run", *CATALOG, *HISTORIES)
    assert "over 105 users" in again.out
    words = ("evaluate", "--model", trained / "run", *CATALOG, *HISTORIES, "--json")
    less = towers(*words, "--popularity-discount", 20).json
    assert less["popularity_discount"] == 20
    popularity = [one["measures"]["Popularity@10"]["mean"] for one in (less, facts)]
    assert popularity[0] < popularity[1]
    users = ("--users", trained / "users.csv")
    more = towers("evaluate", "--model", trained / "run", *CATALOG, *HISTORIES, *REVIEWS, *users)
    assert "R@10 where club is KIT:" in more.out
    words = ("evaluate", "--model", trained / "run", *CATALOG, *HISTORIES, *users, "--json")
    facts = towers(*words, "--user-columns", "club").json
    assert list(facts["groups"]) == ["club"]
    of_all = facts["measures"]["R@10"]["mean"]
    groups = facts["groups"]["club"]["R@10"].values()
    assert sum(group["users"] for group in groups) == 104  # one has no club
    means = sum(group["users"] * group["mean"] for group in groups)
    assert means == pytest.approx(105 * of_all, abs=1.001)


def test_export_serves_recommendations(trained, towers, start_server):
    base = trained / "saved_models" / "shop"
    export = towers("export", "--model", trained / "run", *CATALOG, "--output", base, "--json")
    assert export.status == 0, export.err
    names = {"recommend", "score", "recommend_reviews", "score_reviews"}
    assert names <= set(json.loads(export.out)["signatures"])
    server = start_server(base)
    ask = ("recommend", "KIT-0010", "no such item", "KIT-0004", "--model", "shop", *CATALOG)
    answer = towers(*ask, "--server", server.grpc, "--k", 4, "--json")
    assert answer.status == 0, answer.err
    facts = json.loads(answer.out)
    assert (facts["unknown"], len(facts["items"])) == (1, 4)
    assert not {"KIT-0010", "KIT-0004"} & {item["item_id"] for item in facts["items"]}
    assert "1 of 3 items are not in the catalogue" in answer.err
    assert all(item["title"] for item in facts["items"])
    scores = [item["score"] for item in facts["items"]]
    assert (np.diff(scores) <= 0).all()
    for words in ((), ("--query", "loaf tin")):
        nobody = towers("recommend", *words, "--model", "shop", "--server", server.grpc)
        assert len(nobody.out.splitlines()) == 10
    ask = ("recommend", "KIT-0010", "--model", "shop", "--server", server.grpc, "--json")
    plain = towers(*ask).json
    ask_of = (*ask, "--review", "a proper loaf tin", "--review", "good", "--rating")
    liked, hated = (towers(*ask_of, rating, "--rating", 3).json for rating in (5, 1))
    assert (liked["reviews"], liked["ratings"]) == (["a proper loaf tin", "good"], [5, 3])
    orders = [[item["item_id"] for item in answer["items"]] for answer in (plain, liked, hated)]
    assert orders[1] != orders[2]
    scores = [
        {i["item_id"]: i["score"] for i in answer["items"]} for answer in (plain, liked, hated)
    ]
    for item in set(scores[0]) & set(scores[1]) & set(scores[2]):  # one adds what the other takes
        assert scores[1][item] + scores[2][item] == pytest.approx(2 * scores[0][item], abs=1e-3)
    assert towers(*ask, "--review", "no rating").status == 0
    contexts_on_the_command_line(trained, towers, server.grpc)
    reasons_of_recommendations(trained, towers, (*ask, *CATALOG, "--explain"))


def contexts_on_the_command_line(trained, towers, server):
    ask = ("recommend", "--model", "shop", "--server", server, "--json")
    nobody = towers(*ask).json["items"]
    of_club = {}
    for club in ("KIT", "PET", "no such club"):
        facts = towers(*ask, "--context", f"club={club}", "--context", "season=winter").json
        assert facts["context"] == {"club": club, "season": "winter"}
        of_club[club] = facts["items"]
    assert of_club["no such club"] == nobody
    for club in ("KIT", "PET"):
        own = [item["item_id"].startswith(club) for item in of_club[club]]
        assert sum(own) > sum(item["item_id"].startswith(club) for item in nobody)
    words = ("--explain", trained / "run", "--context", "club=PET", "--context", "age=7")
    explained = towers(*ask, *CATALOG, *words).json
    for item in explained["items"]:
        why = item["why"]
        assert set(why["context"]) == {"club=PET", "age=7"}
        assert why["parts"]["context"] == pytest.approx(sum(why["context"].values()))
        assert why["score"] == pytest.approx(item["score"], abs=0.02)
    text = towers(
        *("recommend", "--model", "shop", "--server", server, "--k", 1, *CATALOG),
        *("--explain", trained / "run", "--context", "club=PET"),
    ).out
    assert "; club=PET +" in text


def reasons_of_recommendations(trained, towers, ask):
    """`--explain` says of every served score what it is made of."""
    run_folder = trained / "run"
    written = ("--review", "a proper loaf tin", "--rating", 2, "--review", "fine", "--rating", 0)
    for words, others in ((), {"popularity"}), (written, {"popularity", "reviews"}):
        facts = towers(*ask, run_folder, *words).json
        for item in facts["items"]:
            why = item["why"]
            assert why["score"] == pytest.approx(item["score"], abs=0.02)  # items in bfloat16
            assert set(why["parts"]) == {"text", "co_occurrence", "words"} | others
            assert [past["item_id"] for past in why["history"]] == ["KIT-0010"]
    plain = towers(*ask, run_folder).json["items"]
    asked = towers(*ask, run_folder, "--query", "loaf tin").json["items"]
    for item in asked:
        assert item["why"]["score"] == pytest.approx(item["score"])  # the query has what is left
        assert item["why"]["parts"]["popularity"] == 0
    text = towers(*(word for word in ask if word != "--json"), run_folder).out.splitlines()
    assert len(text) == 2 * len(plain)
    assert text[1].startswith("     Banneton, oval 25 cm +")
    parts = plain[0]["why"]["parts"]
    added = [
        f"{name.replace('_', '-')} {of:+.2f}" for name, of in parts.items() if abs(of) >= 0.005
    ]
    assert text[1].endswith(f"  ({', '.join(added)})")
    without = tuple(word for word in ask if word not in CATALOG)
    assert "--explain needs --catalog" in towers(*without, run_folder).err
    other = trained / "other"
    shutil.copytree(run_folder, other)
    learned = Recommender.load(other / "recommender")
    dataclasses.replace(learned, weights=dataclasses.replace(learned.weights, popularity=9.0)).save(
        other / "recommender"
    )
    answer = towers(*ask, other)
    assert answer.status == 2
    assert "is not the run that the server's model was exported from" in answer.err


def test_wrong_reviews_are_named(towers):
    ask = ("recommend", "KIT-0010", "--model", "shop", "--review", "fine")
    for words, said in (
        (("--rating", 1, "--rating", 2), "2 ratings for 1 reviews"),
        (("--rating", 6), "not in the range 0<=x<=5"),
        (("--rating", 0.5), "has to be from 1 to 5"),
        (("--review", ""), "a --review is empty"),
        (("--context", "gold"), "'gold': expected COLUMN=VALUE"),
        (("--context", "a=1", "--context", "a=2"), "'a=2': expected COLUMN=VALUE"),
    ):
        answer = towers(*ask, *words)
        assert answer.status == 2, answer.err
        assert said in answer.err


def test_wrong_input_is_named(trained, towers, tmp_path):
    both = towers("evaluate", "--model", trained / "run", *CATALOG)
    assert both.status == 2
    assert "either --interactions or --histories" in both.err
    unknown = tmp_path / "histories.jsonl"
    unknown.write_text('{"user_id": "u", "items": ["KIT-0010", "gone"]}\n')
    words = ("train", *CATALOG, "--histories", unknown, "--strict", "--output", tmp_path / "run")
    strict = towers(*words)
    alone = towers("train", *CATALOG, *REVIEWS, "--output", tmp_path / "run")
    words = ("train", *CATALOG, *HISTORIES, "--output", tmp_path / "run")
    for options, said in (
        (("--user-columns", "age"), "--user-columns needs --users"),
        (("--context", "season"), "told by the times of events"),
        (("--context", "device"), "needs histories as rows"),
        (("--context", "a,,b"), "expected names of columns, each once"),
        (
            ("--users", SHOP / "histories.jsonl", "--user-columns", "age"),
            "no column 'age' of users",
        ),
    ):
        answer = towers(*words, *options)
        assert answer.status == 2
        assert said in answer.err
    assert not (tmp_path / "run").exists()
    people = towers("train", *CATALOG, "--context", "season", "--output", tmp_path / "run")
    assert "--users and --context need --histories" in people.err
    assert alone.status == 2
    assert "--reviews needs --histories" in alone.err
    assert strict.status == 2
    assert "histories.jsonl" in strict.err
    (trained / "without").mkdir()
    for name in ("metrics.json", "run.json", "config.json"):
        (trained / "without" / name).write_bytes((trained / "run" / name).read_bytes())
    without = towers("evaluate", "--model", trained / "without", *CATALOG, *HISTORIES)
    assert without.status == 2
    assert "trained without histories" in without.err
    judged = ("--interactions", SHOP / "test.csv", "--popularity-discount", "1")
    searches = towers("evaluate", "--model", trained / "run", *CATALOG, *judged)
    assert searches.status == 2
    assert "--popularity-discount needs --histories" in searches.err
