"""Groups of users from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from towers.errors import InputError
from training.recommendation.user_groups import user_groups


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users.csv"
    path.write_text(
        "user_id,age,country\nann,young,DE\nbob,,FR\ncat,old,\nann,old,\ndan,young,DE\nbob,,UK\n"
    )
    return path


def test_the_last_value_counts(path: Path) -> None:
    users = ["dan", "ann", "bob", "cat", "eve"]
    assert user_groups(path, "age", users) == ["young", "old", None, "old", None]
    assert user_groups(path, "country", users) == ["DE", "DE", "UK", None, None]


def test_bad_input(path: Path) -> None:
    with pytest.raises(InputError, match=r"users\.csv: no column 'sex' .* there are age, country"):
        user_groups(path, "sex", ["ann"])
    with pytest.raises(InputError, match="no column 'user_id' to group users by"):
        user_groups(path, "user_id", ["ann"])
    with pytest.raises(InputError, match="'age' has no value for any of 2 users"):
        user_groups(path, "age", ["bob", "eve"])
    path.write_text("user,age\nann,old\n")
    with pytest.raises(InputError, match="no column 'user_id'"):
        user_groups(path, "age", ["ann"])
