"""What a hyper-parameter search may change: fields of a configuration, each with its values."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from towers.errors import InputError
from training.config import TrainConfig

if TYPE_CHECKING:
    import optuna

# Fields that a trial has no use for, or that would make its score another one, and why. Under the
# name of a table: all of its fields.
_MEASURED = "it decides what is measured: fix it"
_ALL_EPOCHS = (
    "a trial holds its queries out itself, and trains for all epochs on the others: search "
    "fit.epochs"
)
_DEVICES = "it decides where and how exactly `towers train` computes, not what it learns: fix it"
_ATTRIBUTES = (
    "trials rank by texts alone, and `towers train` judges attributes by held-out queries: fix it, "
    "and search encoder.item_template for what the text says"
)
_REFUSED = {
    "seed": _MEASURED,
    "shots": _MEASURED,
    "min_grade": _MEASURED,
    "strategy": _DEVICES,
    "deterministic": _DEVICES,
    "update": "it belongs to `towers update`: leave it out",
    "encoder.numeric": _ATTRIBUTES,
    "encoder.categorical": _ATTRIBUTES,
    "encoder.image": _ATTRIBUTES,
    "fit.held_out": _ALL_EPOCHS,
    "fit.min_held_out": _ALL_EPOCHS,
    "fit.patience": _ALL_EPOCHS,
    "fit.interpolate": (
        "a trial holds its queries out itself, and keeps none to choose a share by: search "
        "fit.learning_rate or fit.anchor for how far training goes"
    ),
    "fit.accumulate": (
        "it decides how much memory a batch takes, not what is learned: fix it, and search "
        "fit.batch_size"
    ),
}
# Values of fields that can be searched otherwise.
_REFUSED_VALUES = {
    "method": ("auto", "auto is a search itself: leave it out"),
    "warm_up": ("auto", 'where a method is named, auto is off: search ["off", "catalog"]'),
}


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
        where ratios count. ``method = "auto"`` becomes ``full``: a search chooses by itself. With
        a method named, ``warm_up = "auto"`` is ``off``, and becomes that where it is searched.

        Args:
            values: the file's content with the command line's options over it.
            where: for messages.

        Raises:
            InputError: nothing is searched, a range is none, a field or value is no part of a
                configuration, or it would change nothing, or the score itself.
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
        if "warm_up" in fields and base.get("warm_up", "auto") == "auto":
            base["warm_up"] = "off"  # so that the configuration as it stands is in the space
        space = cls(base, fields, where)
        for name, field in fields.items():
            for value in field.extremes:
                for leaf, leaf_value in _leaves(name, value):
                    if (why := _why_not(leaf, leaf_value)) is not None:
                        raise InputError(f"{where}: search.{leaf}: {why}")
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


def _why_not(name: str, value: Any) -> str | None:
    """What keeps a field from being searched, or a value of it from being tried, if anything."""
    table = name.partition(".")[0]
    if (why := _REFUSED.get(name) or _REFUSED.get(table)) is not None:
        return why
    refused, why = _REFUSED_VALUES.get(name, (None, ""))
    return why if refused is not None and value == refused else None


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The fields that a value sets: several where it is a table, as ``fit = [{ ... }]`` has."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}", part)
    else:
        yield name, value


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
