"""The text an item tower reads, made from the columns of a catalogue."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from towers.errors import InputError

_SECTION = re.compile(r"\[([^\[\]]*)\]")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class ItemTemplate:
    """A text with named columns in braces and optional sections in brackets.

    A section in ``[...]`` is left out where any column in it is empty, so that words around a
    missing value do not stay behind. Runs of white space become one space.

    Args:
        pattern: for example ``"{title}[ by {brand}][. {description}]"``.

    Raises:
        InputError: unbalanced braces or brackets, nested brackets, or no column at all.

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
        """The usual template: title, then brand and description where the catalogue has them."""
        parts = ["{title}"]
        parts += [f"[ {{{name}}}]" for name in ("brand", "description") if name in columns]
        return cls("".join(parts))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns named, in order of first use."""
        names = [name for _, fields in self._sections() for name in _fields(fields, self.pattern)]
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
        cells = [[_cell(value) for value in columns[name]] for name in self.columns]
        sections = [
            (optional, text, _fields(text, self.pattern)) for optional, text in self._sections()
        ]
        rendered = []
        for row in zip(*cells, strict=True):
            values = dict(zip(self.columns, row, strict=True))
            text = "".join(
                fields.format_map(values)
                for optional, fields, names in sections
                if not optional or all(values[name] for name in names)
            )
            rendered.append(_SPACES.sub(" ", text).strip())
        return rendered

    def _sections(self) -> list[tuple[bool, str]]:
        """The pattern cut into (is optional, text) pieces."""
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
        return [(optional, text) for optional, text in pieces if text]


def _fields(text: str, pattern: str) -> list[str]:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise InputError(f"item text template {pattern!r}: {error}") from error
    if not all(fields):
        raise InputError(f"item text template {pattern!r} has an empty {{}}: name a column")
    return fields


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    return str(value).strip()
