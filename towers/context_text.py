"""A context as text: what is known of a user or a moment, column by column."""

from __future__ import annotations

import math
from collections.abc import Mapping

Context = Mapping[str, str | float | None]
"""Column to value, such as `{"member_level": "gold", "age": 37, "season": None}`."""


def context_texts(context: Context) -> list[str]:
    """A context as the signatures take it, `column=value` each; without what has no value."""
    return [
        f"{column}={value:.15g}" if isinstance(value, float) else f"{column}={value}"
        for column, value in context.items()
        if not (value is None or value == "" or (isinstance(value, float) and math.isnan(value)))
    ]
