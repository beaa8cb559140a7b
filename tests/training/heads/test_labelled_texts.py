"""Labelled texts from files: what is kept, how rows are drawn, how folds are cut."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest

from towers.errors import InputError
from towers.item_text import ItemTemplate
from training.heads.labelled_texts import LabelledTexts
from training.text_table import TextTable

REVIEW = ItemTemplate("{review}")


def write(path: Path, rows: list[tuple[str, str]]) -> TextTable:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("review", "dept"), *rows])
    return TextTable.read(path, REVIEW)


def many(n: int) -> list[tuple[str, str]]:
    return [(f"review {i}", "abc"[i % 3]) for i in range(n)]


def test_rows_are_kept_or_counted(tmp_path: Path) -> None:
    rows = [("fine", "a"), ("fine", "a"), ("fine", "b"), ("", "a"), ("bad", ""), ("odd", "c")]
    rows += [("good", "a"), ("poor", "b")]
    labelled = LabelledTexts.of(write(tmp_path / "t.csv", rows), "dept", min_rows=2)
    names = [labelled.classes[n] for n in labelled.label]
    kept = set(zip(labelled.texts, names, strict=True))
    assert kept == {("fine", "a"), ("good", "a"), ("fine", "b"), ("poor", "b")}
    assert labelled.classes == ("a", "b")
    assert labelled.counts() == {"a": 2, "b": 2}
    left = labelled.left_out
    assert (left.without_text, left.without_label, left.repeated) == (1, 1, 1)
    assert left.rare == {"c": 1}
    expected = "1 rows without text, 1 rows without label, 1 repeated rows, 1 classes with too few"
    assert str(left).startswith(expected)


def test_several_columns_make_a_text(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"title": "Nice", "review": "fits well", "stars": 5}\n{"review": "torn", "stars": 1}\n'
    )
    table = TextTable.read(path, ItemTemplate("[{title}. ]{review}"))
    assert table.texts == ["Nice. fits well", "torn"]
    assert LabelledTexts.of(table, "stars").classes == ("1", "5")


def test_draws_are_nested_and_the_same_in_any_order_of_the_file(tmp_path: Path) -> None:
    rows = many(90)
    shuffled = random.Random(0).sample(rows, len(rows))
    first, second = (
        LabelledTexts.of(write(tmp_path / f"{n}.csv", some), "dept", seed=3)
        for n, some in enumerate([rows, shuffled])
    )
    assert first.texts == second.texts
    small, large = set(first.draw(4).tolist()), set(first.draw(10).tolist())
    assert small < large
    assert np.bincount(first.label[first.draw(4)]).tolist() == [4, 4, 4]
    assert len(first.draw(None)) == 90
    other = LabelledTexts.of(write(tmp_path / "o.csv", rows), "dept", seed=4)
    assert {other.texts[row] for row in other.draw(4)} != {first.texts[row] for row in small}


def test_folds_are_a_stratified_partition(tmp_path: Path) -> None:
    labelled = LabelledTexts.of(write(tmp_path / "t.csv", many(60)), "dept")
    splits = labelled.splits(5, shots_per_class=6)
    tested = np.concatenate([test for _, test in splits])
    assert sorted(tested.tolist()) == list(range(60))
    for train, test in splits:
        assert not set(train) & set(test)
        assert np.bincount(labelled.label[test]).tolist() == [4, 4, 4]
        assert np.bincount(labelled.label[train]).tolist() == [6, 6, 6]


def test_rows_that_lack_something_can_be_refused(tmp_path: Path) -> None:
    rows = [("good", "a"), ("", "b"), ("bad", "b")]
    table = write(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match=r"t\.csv, line 3: the text is empty"):
        LabelledTexts.of(table, "dept", strict=True)
    table = write(tmp_path / "u.csv", [("good", "a"), ("bad", "b"), ("so so", "")])
    with pytest.raises(InputError, match=r"u\.csv, line 4: column 'dept' is empty"):
        LabelledTexts.of(table, "dept", strict=True)
    table = write(tmp_path / "v.csv", [*many(6), ("rare one", "d")])
    with pytest.raises(InputError, match=r"'dept': 1 classes with too few rows: d \(1\)"):
        LabelledTexts.of(table, "dept", min_rows=2, strict=True)


def test_two_classes_are_needed(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [("good", "a"), ("fine", "a"), ("bad", "b")])
    with pytest.raises(InputError, match=r"'dept' has 1 class\(es\) of 2 or more rows.*b \(1\)"):
        LabelledTexts.of(table, "dept", min_rows=2)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", many(3))
    with pytest.raises(InputError, match=r"no column 'class'; the columns are 'review', 'dept'"):
        LabelledTexts.of(table, "class")
    with pytest.raises(InputError, match=r"no column 'text'"):
        TextTable.read(tmp_path / "t.csv", ItemTemplate("{text}"))
