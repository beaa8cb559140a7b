"""Filters of a request, as a person writes them and as `search_filtered` takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.client_grpc import Input
from towers.errors import InputError

Range = tuple[float | None, float | None]
"""Least and most, both inclusive; None for no limit."""

Filters = Mapping[str, Sequence[str] | Range]
"""Column to the texts that are allowed, or to a range of numbers."""

_LEAST = float(np.finfo(np.float32).min)  # not every REST server reads an infinity
_NOT_COLUMNS = ("query", "exclude", "embedding", "best")


def filter_inputs(
    signature: Mapping[str, str], filters: Filters, exclude: Sequence[str], count: int
) -> dict[str, Input]:
    """The inputs of `search_filtered` beside the queries, the same for each of them.

    Args:
      signature: The DataType of each of its inputs.
      filters: What is allowed; columns that are not named allow everything.
      exclude: Ids of items that are not wanted.
      count: The number of queries, N.

    Raises:
      InputError: A column that the model does not have, or whose values are of the other kind.
    """
    columns = {name: dtype for name, dtype in signature.items() if name not in _NOT_COLUMNS}
    for name in filters:
        if name not in columns:
            raise InputError(
                f"there is no column {name!r} to filter by; there are "
                f"{', '.join(sorted(columns)) or 'none'}"
            )
    inputs: dict[str, Input] = {"exclude": [list(exclude)] * count}
    for name, dtype in columns.items():
        wanted = filters.get(name, ())
        if dtype == "DT_STRING":
            inputs[name] = [_texts(name, wanted)] * count
        else:
            inputs[name] = np.tile(np.array(_range(name, wanted), np.float32), (count, 1))
    return inputs


def _texts(name: str, wanted: Sequence[str] | Range) -> list[str]:
    if isinstance(wanted, str) or not all(isinstance(value, str) for value in wanted):
        raise InputError(f"column {name!r} holds texts: give a list of those that are allowed")
    return [str(value) for value in wanted]


def _range(name: str, wanted: Sequence[str] | Range) -> list[float]:
    if len(wanted) == 0:
        return []
    if len(wanted) != 2 or not all(x is None or isinstance(x, int | float) for x in wanted):
        raise InputError(
            f"column {name!r} holds numbers: give the least and the most, None for no limit"
        )
    least, most = wanted
    if least is None and most is None:
        return []
    limits = [_LEAST if least is None else float(least)]
    return limits if most is None else [*limits, float(most)]
