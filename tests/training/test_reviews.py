"""Reading reviews: columns, ratings, what is left out, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from towers.errors import InputError
from training.catalog import Catalog
from training.reviews import Reviews


@pytest.fixture
def catalog(tmp_path):
    path = tmp_path / "catalog.csv"
    path.write_text("item_id,title\nmug,Red mug\nrake,Garden rake\n")
    return Catalog.read(path)


def read(tmp_path, catalog, text: str, name: str = "reviews.csv", **options) -> Reviews:
    path = tmp_path / name
    path.write_text(text)
    return Reviews.read(path, catalog, **options)


def test_columns_are_read_and_titles_come_first(tmp_path, catalog):
    reviews = read(
        tmp_path,
        catalog,
        "review_id,user_id,item_id,title,review,rating,timestamp\n"
        '1,ann,mug,Lovely,"Warm, red",4.5,2024-05-01\n'
        "2,bob,gone,Why?,It broke,1,\n"
        "3,,rake,,Good,,2024-05-03\n"
        "4,ann,rake,Only a title,,5,\n",
    )
    assert reviews.texts == ["Lovely. Warm, red", "Why? It broke", "Good"]
    assert reviews.users == ["ann", "bob", None]
    assert reviews.item_row.tolist() == [0, -1, 1]
    np.testing.assert_array_equal(reviews.rating, np.array([4.5, 1, np.nan], np.float32))
    assert np.isnat(reviews.timestamp).tolist() == [False, True, False]
    assert (reviews.without_text, reviews.unknown_items.rows) == (1, 1)


def test_text_alone_will_do(tmp_path, catalog):
    reviews = read(tmp_path, catalog, '{"item_id": "mug", "text": "fine"}\n', "r.jsonl")
    assert (reviews.texts, reviews.users, reviews.timestamp) == (["fine"], [None], None)
    assert np.isnan(reviews.rating).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item_id,user_id\nmug,ann\n", "neither 'review' nor 'text'"),
        ("item_id,review\nmug,\n", "'review' is empty in every row"),
        (
            "item_id,review,rating\nmug,fine,5\nmug,bad,0\n",
            r"line 3: column 'rating' is '0'.*1 to 5",
        ),
        ("item_id,review,rating\nmug,fine,10\n", "expected a number from 1 to 5"),
        ("user_id,review\nann,fine\n", "item_id"),
    ],
)
def test_wrong_input_is_named(tmp_path, catalog, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, catalog, text)


def test_strict_refuses_unknown_items(tmp_path, catalog):
    with pytest.raises(InputError, match="first in line 3"):
        read(tmp_path, catalog, "item_id,review\nmug,a\ngone,b\n", strict=True)
