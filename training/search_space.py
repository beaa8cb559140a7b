"""What a hyper-parameter search may change: fields of a configuration, each with its values."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from towers.errors import InputError
from training.config import TrainConfig

if TYPE_CHECKING:
    import optuna

# What the score of a search rests on: with another value it would be another score.
_FIXED = ("seed", "shots", "min_grade")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are.

    Attributes:
        low: the least.
        high: the greatest.
        log: whether ratios count rather than differences.
    """

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """A value for a trial."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that all others lie between."""
        return self.low, self.high

    def stored(self, value: Any) -> Any:
        """A value as the study keeps it; None where it is not one of these."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and self.low <= value <= self.high else None


@dataclass(frozen=True)
class Choices:
    """Some values of any kind.

    Attributes:
        values: at least one.
    """

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """A value for a trial."""
        return json.loads(str(trial.suggest_categorical(name, [*map(json.dumps, self.values)])))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def stored(self, value: Any) -> Any:
        """A value as the study keeps it; None where it is not one of these."""
        return json.dumps(value) if value in self.values else None


@dataclass(frozen=True)
class SearchSpace:
    """A configuration, and the fields of it that are searched.

    Attributes:
        base: the configuration as nested tables.
        fields: values by the field's name, with its table: ``fit.learning_rate``.
        where: the file, for messages.
    """

    base: dict[str, Any]
    fields: dict[str, Range | Choices]
    where: str

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> SearchSpace:
        """Takes a configuration apart that has a table ``search``.

        Each of its fields is a list of values, or a table of ``low`` and ``high``, and ``log``
        where ratios count. ``method = "auto"`` becomes ``full``: a search chooses by itself.

        Args:
            values: the file's content with the command line's options over it.
            where: for messages.

        Raises:
            InputError: nothing is searched, a range is none, or a field or value is no part of a
                configuration.
        """
        base = {name: value for name, value in values.items() if name != "search"}
        if base.get("method", "auto") == "auto":
            base["method"] = "full"
        search = values.get("search")
        if not isinstance(search, dict) or not search:
            raise InputError(
                f"{where}: nothing to search over: a table [search] is needed, as in "
                '[search] "fit.learning_rate" = { low = 1e-5, high = 1e-3, log = true }'
            )
        fields = dict(_flat(search, where))
        space = cls(base, fields, where)
        for name, field in fields.items():
            if name in _FIXED:
                raise InputError(f"{where}: search.{name}: it decides what is measured: fix it")
            if name == "method" and "auto" in field.extremes:
                raise InputError(f"{where}: search.method: auto is a search itself: leave it out")
            for value in field.extremes:
                space.config({name: value})
        return space

    def config(self, chosen: Mapping[str, Any]) -> TrainConfig:
        """The configuration with some fields as chosen.

        Raises:
            InputError: it is not valid.
        """
        return TrainConfig.of(self.values(chosen), f"{self.where}, {_listed(chosen)}")

    def values(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The same as nested tables."""
        values = copy.deepcopy(self.base)
        for name, value in chosen.items():
            *tables, field = name.split(".")
            place = values
            for table in tables:
                place = place.setdefault(table, {})
            place[field] = value
        return values

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """A value of each field for a trial."""
        return {name: field.suggest(trial, name) for name, field in self.fields.items()}

    def start(self) -> dict[str, Any]:
        """The values that the configuration itself has, as far as they are in the space.

        As the study keeps them, to be its first trial.
        """
        settings = self.config({}).model_dump(mode="json")
        found = {}
        for name, field in self.fields.items():
            value = settings
            for part in name.split("."):
                value = value[part]
            stored = field.stored(value)
            if stored is not None:
                found[name] = stored
        return found


def _flat(table: Mapping[str, Any], where: str, prefix: str = "") -> list[tuple[str, Any]]:
    """Fields by their names, whether TOML has them as `"fit.epochs"` or in a table `fit`."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, list):
            if not value:
                raise InputError(f"{where}: search.{name}: no value to choose from")
            found.append((name, Choices(tuple(value))))
        elif isinstance(value, dict) and {"low", "high"} & value.keys():
            found.append((name, _range(value, f"{where}: search.{name}")))
        elif isinstance(value, dict):
            found += _flat(value, where, f"{name}.")
        else:
            raise InputError(
                f"{where}: search.{name}: a list of values or {{ low = ..., high = ... }} is "
                f"needed, not {value!r}"
            )
    return found


def _range(table: Mapping[str, Any], where: str) -> Range:
    numbers: list[Any] = [table.get("low"), table.get("high")]
    right = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not right or table.keys() - {"low", "high", "log"} or not numbers[0] < numbers[1]:
        raise InputError(f"{where}: low and high must be numbers, low below high; and log, if any")
    log = table.get("log", False)
    if not isinstance(log, bool) or (log and numbers[0] <= 0):
        raise InputError(f"{where}: log is true or false, and with true low is above 0")
    return Range(numbers[0], numbers[1], log)


def _listed(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in chosen.items()) or "as it stands"
