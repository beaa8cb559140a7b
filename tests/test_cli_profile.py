"""`towers profile` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SHOP = Path(__file__).parent.parent / "examples" / "shop"
CATALOG = ("--catalog", SHOP / "catalog.csv")
HISTORIES = ("--histories", SHOP / "histories.jsonl")
REVIEWS = ("--reviews", SHOP / "reviews.csv")


def test_a_user_of_the_sample_shop_for_people(towers):
    answer = towers("profile", *CATALOG, *HISTORIES, *REVIEWS, "--user", "u011")
    assert answer.status == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[:2] == ["User u011", "  8 items, 8 events, 3 reviews"]
    # 7 of 545 items are in Pets > Walking: (4 + 1) / (8 * 7 / 545 + 1).
    assert "Pets > Walking: 4 of 8, 4.5 times as often as elsewhere" in answer.out
    assert "brand       Mog & Hound: 7 of 8, " in answer.out
    assert "Pets > Beds: 1 of 8 (may be chance)" in answer.out
    assert '"Our whippet hid behind the sofa at every storm' in answer.out
    assert 'dead: "Dead after six weeks." 1/5, HOM-0018' in answer.out
    assert "105 users, 684 items in their histories" in answer.err


def test_all_users_as_json_lines(towers, tmp_path):
    output = tmp_path / "profiles.jsonl"
    words = ("profile", *CATALOG, *HISTORIES, *REVIEWS, "--output", output)
    assert towers(*words, "--json").json == {"profiles": 105, "output": str(output)}
    profiles = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    users = [json.loads(line) for line in (SHOP / "histories.jsonl").read_text().splitlines()]
    assert [one["user"] for one in profiles] == [one["user_id"] for one in users]
    assert [one["events"] for one in profiles] == [len(one["items"]) for one in users]
    assert sum(one["reviews"] for one in profiles) == 96
    one = towers("profile", *CATALOG, *HISTORIES, *REVIEWS, "--user", "u001", "--json").json
    assert one == {"against": "catalog", "profiles": [profiles[0]]}


def test_a_history_and_reviews_alone(towers):
    items = ("KIT-0010", "no such item", "KIT-0004")
    answer = towers("profile", *items, *CATALOG)
    assert answer.status == 0, answer.err
    assert "1 items are not in the catalogue" in answer.out
    assert "2 items, 2 events" in answer.out
    alone = towers("profile", *CATALOG, *REVIEWS, "--user", "u011", "--user", "who", "--user", "he")
    assert "3 items, 3 reviews" in alone.out
    assert "User who\n  nothing is known" in alone.out
    assert "users that the data do not know: 2 (who, he)" in alone.err


def test_what_is_missing_is_said(towers, tmp_path):
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("item_id,title,cost\na,Red mug,cheap\nb,Blue mug,\n")
    reviews = tmp_path / "reviews.csv"
    reviews.write_text("item_id,user_id,text\na,u,Lovely.\nb,,Nobody.\nc,u,Gone.\n")
    words = ("profile", "--catalog", catalog, "--reviews", reviews, "--numeric", "cost")
    answer = towers(*words)  # the only user
    assert answer.status == 0, answer.err
    assert "1 items, 2 reviews (2 without a rating, not looked at)" in answer.out
    assert "unknown: no item has one; 1 values of the catalogue are no numbers" in answer.out
    for name in ("category", "brand"):
        assert f"the catalogue has no column {name}" in answer.err
    assert "reviews without a user: 1" in answer.err
    assert "reviews of items that the catalogue lacks: 1" in answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --histories, --reviews or both, or ITEM_IDS"),
        (("KIT-0010", "--user", "u001"), "give either ITEM_IDS or --user"),
        (HISTORIES, "there are 105 users: name some with --user"),
        ((*HISTORIES, "--user", "u001", "--categorical", "taste"), "no text column 'taste'"),
        (("KIT-0010", "--against", "users"), "there are no other users"),
    ],
)
def test_wrong_usage_is_named(towers, words, said):
    answer = towers("profile", *CATALOG, *words)
    assert answer.status == 2
    assert said in answer.err
    assert not answer.out


def test_nothing_half_written_is_left(towers, tmp_path):
    output = tmp_path / "profiles.jsonl"
    words = ("--reviews", tmp_path / "none.csv", "--output", output)
    assert towers("profile", *CATALOG, *HISTORIES, *words).status == 2
    assert not list(tmp_path.iterdir())
