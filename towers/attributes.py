"""What a catalogue says about the attributes of its items: scales of numbers, known categories."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from towers.errors import InputError
from towers.item_text import (
    CATEGORY,
    NUMBER,
    SEPARATOR,
    VALUE_SEPARATOR,
    VECTOR,
    ItemTemplate,
)

_BINS = 4
_LEAST_ITEMS = 2
_MOST_CATEGORIES = 10_000
_MOST_VALUES = 32


@dataclass(frozen=True)
class Attribute:
    """What the catalogue says about one attribute.

    Attributes:
        name: its column.
        kind: ``number``, ``category`` or ``vector``.
        edges: of a number: rising quantiles of the catalogue's values, the least and the largest
            among them; none where all items have one value, which then says nothing.
        centre: of a number: mean of its features over the items that have one.
        vocabulary: of a category: the values that two items or more have, the most frequent first.
        width: of a vector: its length.
        most: of a category: values that an item has at most; further ones are not read.
    """

    name: str
    kind: str
    edges: tuple[float, ...] = ()
    centre: tuple[float, ...] = ()
    vocabulary: tuple[str, ...] = ()
    width: int = 0
    most: int = field(default=1, repr=False)

    @property
    def value_count(self) -> int:
        """Width of its part of ``values``."""
        return self.width if self.kind == VECTOR else max(0, len(self.edges) - 1)

    @property
    def category_count(self) -> int:
        """Rows of a table for its categories: one for all rare and unknown ones, one for each."""
        return 1 + len(self.vocabulary) if self.kind == CATEGORY else 0


def learn_attributes(template: ItemTemplate, items: Sequence[str]) -> tuple[Attribute, ...]:
    """Learns the scales of numbers and the categories there are from a catalogue.

    Args:
        template: names the attributes.
        items: all items, rendered by it.

    Raises:
        InputError: the template names no attribute, no item has a value of one of them, or vectors
            differ in length.

    Example:
        >>> template = ItemTemplate("{title}{price:number}{brand:category}")
        >>> items = template.render({"title": ["Mug"], "price": [4.5], "brand": ["Harrow"]})
        >>> attributes = learn_attributes(template, items)
    """
    if not template.attributes:
        raise InputError(
            f"item text template {template.pattern!r} names no attribute, as in {{price:number}}"
        )
    cells = [item.split(SEPARATOR)[1:] for item in items]
    learned = []
    for place, (name, kind) in enumerate(template.attributes.items()):
        values = [row[place] for row in cells if place < len(row) and row[place]]
        if not values:
            raise InputError(f"no item of the catalogue has a value of the attribute {name!r}")
        learn = {NUMBER: _learn_number, CATEGORY: _learn_category, VECTOR: _learn_vector}[kind]
        learned.append(learn(name, values))
    return tuple(learned)


def _learn_number(name: str, values: Sequence[str]) -> Attribute:
    numbers = np.array(values, np.float64)
    # float32, as the graph compares them.
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _BINS + 1)).astype(np.float32))
    if len(edges) < 2:
        return Attribute(name, NUMBER)
    features = (numbers[:, None] - edges[:-1]) / np.diff(edges)  # [N, bins]
    centre = np.clip(features, 0.0, 1.0).mean(axis=0)
    return Attribute(name, NUMBER, tuple(edges.tolist()), tuple(centre.tolist()))


def _learn_category(name: str, values: Sequence[str]) -> Attribute:
    of_items = [value.split(VALUE_SEPARATOR) for value in values]
    counts = Counter(one for several in of_items for one in several)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    frequent = [value for value, count in ordered if count >= _LEAST_ITEMS]
    most = min(_MOST_VALUES, max(map(len, of_items)))
    return Attribute(name, CATEGORY, vocabulary=tuple(frequent[:_MOST_CATEGORIES]), most=most)


def _learn_vector(name: str, values: Sequence[str]) -> Attribute:
    widths = sorted({vector_width(value) for value in values})
    if len(widths) > 1:
        raise InputError(f"vectors of {name!r} have different lengths: {widths[0]}, {widths[1]}")
    return Attribute(name, VECTOR, width=widths[0])


def vector_width(cell: str) -> int:
    """Number of values of a vector as a template writes it; -1 where none did."""
    try:
        return len(base64.urlsafe_b64decode(cell)) // 2
    except ValueError:
        return -1
