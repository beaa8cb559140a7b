"""The text an item tower reads, made from the columns of a catalogue."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from towers.errors import InputError

_SECTION = re.compile(r"\[([^\[\]]*)\]")
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

    Args:
        pattern: for example ``"{title}[ by {brand}][. {description}]"``.

    Raises:
        InputError: unbalanced braces or brackets, nested brackets, a format (``{price:.2f}``), or
            no column at all.

    Example:
        >>> template = ItemTemplate("{title}[ by {brand}]")
        >>> template.render({"title": ["Kettle", "Mug"], "brand": ["Harrow", None]})
        ['Kettle by Harrow', 'Mug']
    """

    pattern: str

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError(
                f"item text template {self.pattern!r} names no column, as in {{title}}"
            )

    @classmethod
    def for_columns(cls, columns: Sequence[str]) -> ItemTemplate:
        """The usual template: title, then brand, category and description where they are there."""
        parts = ["{title}"]
        parts += [f"[ {{{name}}}]" for name in _USUAL if name in columns]
        return cls("".join(parts))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns named, in order of first use."""
        names = [name for _, parts in self._sections() for _, name in parts if name is not None]
        return tuple(dict.fromkeys(names))

    def render(self, columns: Mapping[str, Sequence[object]]) -> list[str]:
        """Fills the template for every row.

        Args:
            columns: column name to one value a row; None and NaN count as empty.

        Raises:
            InputError: a column of the template is not there.
        """
        missing = [name for name in self.columns if name not in columns]
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
        return rendered

    def _sections(self) -> list[tuple[bool, list[_Part]]]:
        """The pattern cut into (is optional, parts) pieces."""
        pieces, position = [], 0
        for match in _SECTION.finditer(self.pattern):
            pieces.append((False, self.pattern[position : match.start()]))
            pieces.append((True, match.group(1)))
            position = match.end()
        pieces.append((False, self.pattern[position:]))
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
        if form or conversion:
            raise InputError(
                f"item text template {pattern!r} formats {name!r}: only {{{name}}} is possible"
            )
    return [(literal, name) for literal, name, _, _ in parsed]


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    return str(value).strip()
