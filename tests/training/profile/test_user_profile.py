"""Profiles of a shop small enough to be worked by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from towers import InputError
from training.catalog import Catalog
from training.histories import Histories
from training.profile import UserProfile, UserProfiles
from training.profile.quotation import quotation
from training.profile.stems import FUNCTION_WORDS, words_with_stems
from training.reviews import Reviews

SHOP = Path(__file__).parents[3] / "examples" / "shop"
CATALOG = """item_id,title,brand,category,price,size
a,Red mug,Harrow,Mugs,2,small
b,Blue mugs,Harrow,Mugs,4,large
c,Green mug,Purr,Mugs,6,
d,Garden rake,Purr,Garden,8,large
e,Garden hose,,Garden,,12
f,Cat post,Purr,Pets,12,n/a
g,Cat bed,Purr,Pets,14,inf
h,Dog bed,Purr,Pets,16,1.5
"""
HISTORIES = """{"user_id": "u", "items": ["a", "b", "a", "nowhere", "c"]}
{"user_id": "v", "items": ["d", "e", "a"]}
{"user_id": "nothing", "items": []}
"""
REVIEWS = """item_id,user_id,rating,title,text
a,u,5,,"A lovely handle. It holds a lot."
d,u,1,Broken,"The handle broke. It wobbles."
b,u,,,"Unrated wobbling."
c,u,3,,"Neither here nor there, handles."
nowhere,w,4,,"Sturdy."
h,,2,,"Nobody wrote this: wobbly."
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "catalog.csv").write_text(CATALOG)
    (tmp_path / "histories.jsonl").write_text(HISTORIES)
    (tmp_path / "reviews.csv").write_text(REVIEWS)
    return tmp_path


@pytest.fixture
def catalog(files: Path) -> Catalog:
    return Catalog.read(files / "catalog.csv")


@pytest.fixture
def histories(files: Path, catalog: Catalog) -> Histories:
    return Histories.read(files / "histories.jsonl", catalog)


@pytest.fixture
def reviews(files: Path, catalog: Catalog) -> Reviews:
    return Reviews.read(files / "reviews.csv", catalog)


def by_value(profile: UserProfile, name: str) -> dict[str, tuple[int, int, float, float]]:
    """Of each value its counts, its share of the background and its lift."""
    return {
        trait.value: (trait.items, trait.of_items, trait.background_share, trait.lift)
        for trait in profile.traits[name]
    }


def test_counts_and_lifts_against_the_catalogue(catalog, histories):
    profile = UserProfiles(catalog, histories).of("u")
    assert (profile.events, profile.items, profile.unknown_items) == (4, 3, 0)
    assert profile.newest == ["Green mug", "Red mug", "Blue mugs"]
    # Three of three items are mugs, of eight in the catalogue: (3 + 1) / (3 * 3/8 + 1).
    assert by_value(profile, "category") == {
        "Mugs": (3, 3, 3 / 8, pytest.approx(4 / (3 * 3 / 8 + 1)))
    }
    # Seven items have a brand.
    assert by_value(profile, "brand") == {
        "Harrow": (2, 3, pytest.approx(2 / 7), pytest.approx(3 / (3 * 2 / 7 + 1))),
        "Purr": (1, 3, pytest.approx(5 / 7), pytest.approx(2 / (3 * 5 / 7 + 1))),
    }
    # "mug" and "mugs" are one word, shown as most titles have it.
    words = by_value(profile, "title words")
    assert words["mug"] == (3, 3, 3 / 8, pytest.approx(4 / (3 * 3 / 8 + 1)))
    assert set(words) == {"mug", "red", "blue", "green"}
    assert profile.traits["category"][0].titles == ["Green mug", "Red mug", "Blue mugs"]


def test_against_other_users_the_user_is_left_out(catalog, histories):
    profile = UserProfiles(catalog, histories, against="users").of("u")
    # The only other who took anything took d, e and a: of these one is a mug.
    assert by_value(profile, "category") == {
        "Mugs": (3, 3, pytest.approx(1 / 3), pytest.approx(4 / (3 * 1 / 3 + 1)))
    }
    assert by_value(profile, "brand")["Harrow"][2] == 1 / 2
    # A history that is given is nobody's: all that users took is the background, a twice.
    given = UserProfiles(catalog, histories, against="users").of_items(["a", "b", "c"])
    assert by_value(given, "category")["Mugs"][2] == 4 / 6


def test_quartiles_of_prices_beside_the_catalogue(catalog, histories):
    price = UserProfiles(catalog, histories).of("u").numbers["price"]
    assert (price.items, price.low, price.median, price.high) == (3, 3, 4, 5)
    assert price.catalog_median == 8
    assert (price.catalog_low, price.catalog_high) == tuple(
        np.percentile([2, 4, 6, 8, 12, 14, 16], [25, 75])
    )
    nothing = UserProfiles(catalog, histories).of_items(["e"]).numbers["price"]
    assert (nothing.items, nothing.median, nothing.catalog_median) == (0, None, 8)


def test_any_column_can_be_asked_for(catalog, histories):
    profiles = UserProfiles(catalog, histories, categorical=["size"], numeric=["size"])
    profile = profiles.of("u")
    assert set(profile.traits) == {"size", "title words"}
    assert {name: one[:2] for name, one in by_value(profile, "size").items()} == {
        "small": (1, 2),
        "large": (1, 2),
    }
    size = profile.numbers["size"]
    assert (size.items, size.not_numbers, size.catalog_median) == (0, 5, 6.75)
    with pytest.raises(InputError, match="no text column 'colour'"):
        UserProfiles(catalog, histories, categorical=["colour"])


def test_words_of_liked_and_disliked_reviews(catalog, reviews):
    profile = UserProfiles(catalog, reviews=reviews, top=20).of("u")
    assert (profile.reviews, profile.unrated, profile.neutral) == (4, 1, 1)
    assert profile.items == 4  # reviewed is taken
    liked = {term.word: term for term in profile.liked}
    disliked = {term.word: term for term in profile.disliked}
    # "handle" is in both: at equal counts and odds it says nothing but by the number of words.
    assert set(liked) - {"handle"} == {"lovely", "holds", "lot"}
    assert set(disliked) - {"handle"} == {"broken", "broke", "wobbles"}
    quotation = liked["lovely"].quotations[0]
    assert (quotation.text, quotation.rating) == ("A lovely handle.", 5.0)
    assert (quotation.item_id, quotation.title) == ("a", "Red mug")
    assert disliked["wobbles"].quotations[0].text == "It wobbles."
    # The prior is ten times the mean of the six reviews; "lovely" is in one of them.
    counts = [len({stem for _, stem in words_with_stems(text)}) for text in reviews.texts]
    prior, total = 10 / 6, 10 / 6 * sum(counts)
    sizes = counts[0], counts[1]
    odds_liked = (1 + prior) / (sizes[0] + total - 1 - prior)
    odds_disliked = prior / (sizes[1] + total - prior)
    expected = math.log(odds_liked / odds_disliked) / math.sqrt(1 / (1 + prior) + 1 / prior)
    assert liked["lovely"].z == pytest.approx(expected)
    assert all(term.z > 0 for term in profile.liked)
    assert all(term.z < 0 for term in profile.disliked)
    assert [abs(term.z) for term in profile.liked] == sorted(
        (term.z for term in profile.liked), reverse=True
    )


def test_more_praise_is_more_evidence(tmp_path, catalog):
    lines = ["item_id,user_id,rating,text"]
    lines += [f"{item},u,{rating},soft wool" for item, rating in (("a", 5), ("b", 5), ("c", 5))]
    lines += ["d,v,5,soft cotton", "e,w,4,soft cotton", "f,x,1,rough cotton", "g,x,5,plain"]
    (tmp_path / "more.csv").write_text("\n".join(lines))
    profiles = UserProfiles(catalog, reviews=Reviews.read(tmp_path / "more.csv", catalog))
    of = {user: {t.word: t for t in profiles.of(user).liked} for user in "uvw"}
    assert of["u"]["soft"].reviews == 3
    assert of["u"]["soft"].z > of["v"]["soft"].z > of["w"]["soft"].z > 0  # 3, 1 and 1/2
    assert len(of["u"]["soft"].quotations) == 2
    assert [term.word for term in profiles.of("x").disliked] == ["rough", "cotton"]


def test_users_of_whom_nothing_is_known(catalog, histories, reviews):
    profiles = UserProfiles(catalog, histories, reviews)
    assert profiles.users == ["u", "v", "nothing", "w"]
    for user in ("nothing", "nobody"):
        profile = profiles.of(user)
        assert (profile.events, profile.items, profile.reviews) == (0, 0, 0)
        assert profile.traits == {"category": [], "brand": [], "title words": []}
        assert profile.numbers["price"].median is None
        assert profile.liked == profile.disliked == []
    given = profiles.of_items(["nowhere", "f"])
    assert (given.unknown_items, given.items, given.user) == (1, 1, None)
    reviewed = profiles.of("w")  # of an item that the catalogue lacks
    assert (reviewed.items, [term.word for term in reviewed.liked]) == (0, ["sturdy"])
    assert reviewed.liked[0].quotations[0].item_id is None


def test_histories_and_reviews_together_count_an_item_once(catalog, histories, reviews):
    profile = UserProfiles(catalog, histories, reviews).of("u")
    assert (profile.events, profile.items) == (4, 4)  # a, b and c of both, d of a review
    assert by_value(profile, "category")["Garden"][:2] == (1, 4)


def test_times_of_the_first_and_the_last_event(tmp_path, catalog):
    rows = "user_id,item_id,timestamp\nu,b,2024-05-02\nu,a,2024-05-01T10:00:00Z\n"
    (tmp_path / "rows.csv").write_text(rows)
    profile = UserProfiles(catalog, Histories.read(tmp_path / "rows.csv", catalog)).of("u")
    assert (profile.first, profile.last) == ("2024-05-01T10:00:00", "2024-05-02T00:00:00")
    assert profile.newest == ["Blue mugs", "Red mug"]


def test_a_catalogue_of_titles_alone(tmp_path):
    (tmp_path / "titles.csv").write_text("item_id,title\na,Red mug\nb,½ ©\n")
    profile = UserProfiles(Catalog.read(tmp_path / "titles.csv")).of_items(["a", "b"])
    assert set(profile.traits) == {"title words"}
    assert profile.numbers == {}
    assert [one.of_items for one in profile.traits["title words"]] == [1, 1]


def test_the_facts_are_json(catalog, histories, reviews):
    facts = UserProfiles(catalog, histories, reviews).of("u").as_dict()
    again = json.loads(json.dumps(facts, allow_nan=False))
    assert again["traits"]["category"][0]["stands_out"] is False  # three of four, of three in eight
    assert again["liked"][0]["quotations"][0]["rating"] == 5.0


def test_wrong_input_is_named(files, catalog, histories):
    with pytest.raises(InputError, match="no other users"):
        UserProfiles(catalog, against="users")
    with pytest.raises(InputError, match=r"histories\.jsonl was read with another catalogue"):
        UserProfiles(Catalog.read(files / "catalog.csv"), histories)


def test_words_are_stemmed_and_shown_as_they_are_written():
    found = list(words_with_stems("The Baker’s baking: naïve 2nd-hand, don't, 漢字 x"))
    assert found == [
        *[("baker's", "baker"), ("baking", "bake"), ("naïve", "naïv")],
        *[("hand", "hand"), ("漢字", "漢字")],
    ]
    assert not {"thin", "thick", "top", "fire", "bottom"} & FUNCTION_WORDS


def test_a_quotation_is_the_sentence_cut_at_spaces():
    assert quotation("First one. The second\n holds  it! Third.", "hold") == "The second holds it!"
    text = " ".join(f"w{n}" for n in range(50)) + " needle " + " ".join(f"v{n}" for n in range(50))
    found = quotation(text, "needl", longest=40)
    assert "needle" in found
    assert found.startswith("… ")
    assert found.endswith(" …")
    assert len(found) <= 44
    assert set(found.split()) <= {*text.split(), "…"}  # no word is cut
    assert quotation(text, "w0", longest=10).startswith("w0 ")
    assert quotation("x" * 300 + " end", "absent", longest=20).endswith(" …")


def test_little_stands_out_in_histories_drawn_at_random():
    catalog = Catalog.read(SHOP / "catalog.csv")
    profiles = UserProfiles(catalog)
    random = np.random.default_rng(0)
    drawn = [random.choice(catalog.item_ids, 6, replace=False) for _ in range(300)]
    found = [profiles.of_items(ids).traits for ids in drawn]
    for name in ("category", "brand", "title words"):
        assert np.mean([any(one.stands_out for one in traits[name]) for traits in found]) < 0.05


def test_no_tensorflow_is_imported():
    code = (
        "import sys, towers.cli.profile, training.profile;"
        "print({'tensorflow', 'keras', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
