"""Columns of users from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from towers.errors import InputError
from training.user_columns import UserColumns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users.csv"
    path.write_text(
        "user_id,age,country\nann,young,DE\nbob,,FR\ncat,old,\nann,old,\ndan,young,DE\nbob,,UK\n"
    )
    return path


def test_the_last_value_counts(path: Path) -> None:
    users = ["dan", "ann", "bob", "cat", "eve"]
    found = UserColumns.read(path)
    assert list(found.columns) == ["age", "country"]
    assert found.of("age", users) == ["young", "old", None, "old", None]
    assert found.of("country", users) == ["DE", "DE", "UK", None, None]
    assert list(UserColumns.read(path, ["country"]).columns) == ["country"]


def test_bad_input(path: Path) -> None:
    with pytest.raises(InputError, match=r"users\.csv: no column 'sex' .* there are age, country"):
        UserColumns.read(path, ["age", "sex"])
    with pytest.raises(InputError, match="no column 'user_id' of users"):
        UserColumns.read(path, ["user_id"])
    with pytest.raises(InputError, match="'age' has no value for any of 2 users"):
        UserColumns.read(path).of("age", ["bob", "eve"])
    path.write_text("user,age\nann,old\n")
    with pytest.raises(InputError, match="no column 'user_id'"):
        UserColumns.read(path)
    path.write_text("user_id\nann\n")
    with pytest.raises(InputError, match="no column of users; there is none beside user_id"):
        UserColumns.read(path)
