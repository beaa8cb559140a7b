"""The text an item tower reads, made from the columns of a catalogue, and attributes behind it."""

from __future__ import annotations

import base64
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from towers.errors import InputError

NUMBER, CATEGORY, VECTOR = "number", "category", "vector"
ATTRIBUTE_KINDS = (NUMBER, CATEGORY, VECTOR)
SEPARATOR = "\x1f"  # ASCII's unit separator: white space, so no text that was rendered holds it
VALUE_SEPARATOR = "|"  # between the categories of an item that has several
VECTOR_UNIT = 32767.0  # 1 in a vector behind a text: TensorFlow reads no padded float16

_SECTION = re.compile(r"\[([^\[\]]*)\]")
_ATTRIBUTE = re.compile(r"(?<!\{)\{([^{}:!]+):(" + "|".join(ATTRIBUTE_KINDS) + r")\}")
_SPACES = re.compile(r"\s+")

# What they bring, and why other columns are left out: docs/data.md.
_USUAL = ("brand", "category", "description")

_Part = tuple[str, str | None]
"""Text, and the column whose value follows it."""


@dataclass(frozen=True)
class ItemTemplate:
    """A text with named columns in braces and optional sections in brackets.

    A section in ``[...]`` is left out where any column in it is empty, so that words around a
    missing value do not stay behind. ``{{`` and ``}}`` stand for braces. Runs of white space become
    one space.

    A column with a kind, ``{price:number}``, ``{brand:category}`` or ``{image_embedding:vector}``,
    is an attribute: no text, but a feature of the item (`towers.AttributeFusion`). The values of
    attributes stand behind the text, in the order of the pattern, each after a unit separator
    (U+001F), and nothing after it where an item has no value. So an item stays one string wherever
    it is kept, sent or compared, and a text without anything behind it is an item without
    attributes. Of a vector the direction is kept, in 16 bits a number and base64.

    Args:
        pattern: for example ``"{title}[ by {brand}][. {description}]{price:number}"``.

    Raises:
        InputError: unbalanced braces or brackets, nested brackets, a format (``{price:.2f}``), an
            attribute in brackets or named twice, or no column of text at all.

    Example:
        >>> template = ItemTemplate("{title}[ by {brand}]")
        >>> template.render({"title": ["Kettle", "Mug"], "brand": ["Harrow", None]})
        ['Kettle by Harrow', 'Mug']
        >>> template.with_attributes(numeric=["price"]).pattern
        '{title}[ by {brand}]{price:number}'
    """

    pattern: str

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError(
                f"item text template {self.pattern!r} names no column, as in {{title}}"
            )
        names = [name for name, _ in _ATTRIBUTE.findall(self.pattern)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(
                f"item text template {self.pattern!r} names the attribute {twice[0]!r} twice"
            )

    @classmethod
    def for_columns(cls, columns: Sequence[str]) -> ItemTemplate:
        """The usual template: title, then brand, category and description where they are there."""
        parts = ["{title}"]
        parts += [f"[ {{{name}}}]" for name in _USUAL if name in columns]
        return cls("".join(parts))

    def with_attributes(
        self,
        *,
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        vectors: Sequence[str] = (),
    ) -> ItemTemplate:
        """The template with further attributes behind its own."""
        named = ((NUMBER, numeric), (CATEGORY, categorical), (VECTOR, vectors))
        return ItemTemplate(
            self.pattern + "".join(f"{{{name}:{kind}}}" for kind, names in named for name in names)
        )

    @property
    def text(self) -> ItemTemplate:
        """The template without its attributes."""
        return ItemTemplate(_ATTRIBUTE.sub("", self.pattern))

    @property
    def attributes(self) -> dict[str, str]:
        """Column of each attribute to its kind, in the order of their values behind the text."""
        return dict(_ATTRIBUTE.findall(self.pattern))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the text, in order of first use."""
        names = [name for _, parts in self._sections() for _, name in parts if name is not None]
        return tuple(dict.fromkeys(names))

    def render(self, columns: Mapping[str, Sequence[object]]) -> list[str]:
        """Fills the template for every row.

        Args:
            columns: column name to one value a row; None and NaN count as empty. A vector is a
                sequence of numbers.

        Raises:
            InputError: a column of the template is not there, or the value of an attribute is not
                of its kind.
        """
        attributes = self.attributes
        missing = [name for name in (*self.columns, *attributes) if name not in columns]
        if missing:
            raise InputError(
                f"item text template {self.pattern!r} names the column(s) {', '.join(missing)}; "
                f"the catalogue has {', '.join(columns)}"
            )
        names, sections = self.columns, self._sections()
        cells = [[_cell(value) for value in columns[name]] for name in names]
        rendered = []
        for row in zip(*cells, strict=True):
            values = dict(zip(names, row, strict=True))
            text = "".join(
                literal + (values[name] if name is not None else "")
                for optional, parts in sections
                if not optional or all(values[name] for _, name in parts if name is not None)
                for literal, name in parts
            )
            rendered.append(_SPACES.sub(" ", text).strip())
        if not attributes:
            return rendered
        written = [
            [_written(value, kind, name, row) for row, value in enumerate(columns[name])]
            for name, kind in attributes.items()
        ]
        return [SEPARATOR.join(parts) for parts in zip(rendered, *written, strict=True)]

    def _sections(self) -> list[tuple[bool, list[_Part]]]:
        """The pattern cut into (is optional, parts) pieces."""
        pieces, position = [], 0
        for match in _SECTION.finditer(self.pattern):
            pieces.append((False, _ATTRIBUTE.sub("", self.pattern[position : match.start()])))
            pieces.append((True, match.group(1)))
            position = match.end()
        pieces.append((False, _ATTRIBUTE.sub("", self.pattern[position:])))
        if any("[" in text or "]" in text for _, text in pieces):
            raise InputError(
                f"item text template {self.pattern!r} has unbalanced or nested brackets"
            )
        return [(optional, _parts(text, self.pattern)) for optional, text in pieces]


def _parts(text: str, pattern: str) -> list[_Part]:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"item text template {pattern!r}: {error}") from error
    for _, name, form, conversion in parsed:
        if name == "":
            raise InputError(f"item text template {pattern!r} has an empty {{}}: name a column")
        if form in ATTRIBUTE_KINDS:
            raise InputError(
                f"item text template {pattern!r}: the attribute {name!r} is no text, so it cannot "
                "stand in brackets"
            )
        if form or conversion:
            raise InputError(
                f"item text template {pattern!r} formats {name!r}: only {{{name}}} is possible, or "
                f"an attribute as in {{{name}:number}} (of {', '.join(ATTRIBUTE_KINDS)})"
            )
    return [(literal, name) for literal, name, _, _ in parsed]


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    return str(value).strip()


def text_of(item: str) -> str:
    """The text of a rendered item, without the attributes behind it."""
    return item.partition(SEPARATOR)[0]


def _written(value: Any, kind: str, name: str, row: int) -> str:
    """The value of an attribute as it stands behind the text; empty where there is none."""
    if kind == VECTOR:
        return "" if value is None else _written_vector(value, name, row)
    if kind == CATEGORY:
        return _written_categories(value)
    text = _SPACES.sub(" ", _cell(value))
    if not text:
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"attribute {name!r} is a number, and row {row + 1} has {text!r}: name it as a "
            "category, or leave the cell empty where there is no value"
        )
    return f"{number:.9g}"  # what tells one float32 from the next


def _written_categories(value: Any) -> str:
    """Each value once, in the order given: of a list, or of a text with separators."""
    cells = value if isinstance(value, list | tuple) else [value]
    values = [one.strip() for c in cells for one in _cell(c).split(VALUE_SEPARATOR)]
    distinct = dict.fromkeys(_SPACES.sub(" ", one) for one in values if one)
    return VALUE_SEPARATOR.join(distinct)


def _written_vector(value: Any, name: str, row: int) -> str:
    vector = np.asarray(value, np.float32)
    length = float(np.linalg.norm(vector))
    if vector.ndim != 1 or not math.isfinite(length):
        raise InputError(
            f"attribute {name!r} is a vector of finite numbers, and row {row + 1} is not"
        )
    if length == 0.0:  # no direction: nothing is known
        return ""
    fixed = np.rint(vector / length * VECTOR_UNIT).astype("<i2")
    return base64.urlsafe_b64encode(fixed.tobytes()).decode("ascii")
