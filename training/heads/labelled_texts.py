"""Texts, with the class of each where a file says it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from sklearn.model_selection import StratifiedKFold

from towers.errors import InputError
from training.heads.cross_validation import Split
from training.tables import place
from training.text_table import TextTable

_LISTED = 10


@dataclass(frozen=True)
class LeftOut:
    """Rows that nothing can be learned from, or not enough.

    Attributes:
        without_text: rows whose text is empty.
        without_label: rows with a text and no label.
        repeated: rows that repeat the text and label of an earlier one.
        rare: classes of too few rows, with their number of rows.
    """

    without_text: int = 0
    without_label: int = 0
    repeated: int = 0
    rare: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = {
            "rows without text": self.without_text,
            "rows without label": self.without_label,
            "repeated rows": self.repeated,
        }
        parts = [f"{count:,} {what}" for what, count in counts.items() if count]
        if self.rare:
            listed = ", ".join(f"{name} ({n})" for name, n in list(self.rare.items())[:_LISTED])
            more = ", ..." if len(self.rare) > _LISTED else ""
            parts.append(f"{len(self.rare):,} classes with too few rows: {listed}{more}")
        return ", ".join(parts)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their classes; rows stand in an order that the seed and the texts alone decide.

    Attributes:
        texts: one a row.
        label: int64 ``[rows]``, index into `classes`.
        classes: names, sorted; each has a row.
        left_out: what the file has beyond that.
    """

    texts: list[str] = field(repr=False)
    label: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    left_out: LeftOut

    @classmethod
    def of(
        cls,
        table: TextTable,
        label_column: str,
        *,
        min_rows: int = 1,
        seed: int = 0,
        strict: bool = False,
    ) -> LabelledTexts:
        """Takes the labelled texts of a table.

        Rows without text or label are left out and counted, as are repetitions and classes with
        too few rows.

        Args:
            table: the table.
            label_column: the column with the class names.
            min_rows: fewest rows of a class.
            seed: decides the order of rows, and thereby draws and folds.
            strict: refuse rows without text or label and classes with too few rows.

        Raises:
            InputError: there is no such column, fewer than two classes remain, or `strict`.
        """
        labels = table.column(label_column)
        rows: dict[tuple[str, str], None] = {}
        without_text = without_label = repeated = 0
        for row, (text, name) in enumerate(zip(table.texts, labels, strict=True)):
            if strict and not (text and name):
                what = f"column {label_column!r}" if text else "the text"
                raise InputError(f"{table.path}, {place(table.path, row)}: {what} is empty")
            without_text += not text
            without_label += bool(text) and not name
            if text and name:
                repeated += (text, name) in rows
                rows[text, name] = None
        counts: dict[str, int] = {}
        for _, name in rows:
            counts[name] = counts.get(name, 0) + 1
        rare = {name: count for name, count in counts.items() if count < min_rows}
        classes = tuple(sorted(counts.keys() - rare.keys()))
        left_out = LeftOut(without_text, without_label, repeated, rare)
        if strict and rare:
            raise InputError(
                f"{table.path}: column {label_column!r}: {left_out}; at least {min_rows} of each "
                "are needed"
            )
        if len(classes) < 2:
            found = f"; left out: {left_out}" if str(left_out) else ""
            raise InputError(
                f"{table.path}: column {label_column!r} has {len(classes)} class(es) of {min_rows} "
                f"or more rows, and two are needed{found}"
            )
        kept = [row for row in rows if row[1] not in rare]
        kept.sort(key=lambda row: _hash(seed, *row))
        number = {name: n for n, name in enumerate(classes)}
        return cls(
            texts=[text for text, _ in kept],
            label=np.array([number[name] for _, name in kept]),
            classes=classes,
            left_out=left_out,
        )

    def counts(self) -> dict[str, int]:
        """Rows of each class."""
        counts = np.bincount(self.label, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def draw(self, shots_per_class: int | None, rows: np.ndarray | None = None) -> np.ndarray:
        """The first rows of each class: a draw of 32 contains the draw of 8.

        Args:
            shots_per_class: rows of a class, at most; all if None.
            rows: the rows to draw from, ascending; all if None.

        Returns:
            Rows, ascending.
        """
        rows = np.arange(len(self.texts)) if rows is None else rows
        if shots_per_class is None:
            return rows
        drawn = [
            rows[self.label[rows] == one][:shots_per_class] for one in range(len(self.classes))
        ]
        return np.sort(np.concatenate(drawn))

    def splits(self, folds: int, shots_per_class: int | None = None) -> list[Split]:
        """Folds with about equal shares of the classes; of the rows to fit on, a draw.

        Args:
            folds: 2 or more, at most the rows of the rarest class.
            shots_per_class: see `draw`.
        """
        parts = StratifiedKFold(folds).split(np.zeros(len(self.label)), self.label)
        return [(self.draw(shots_per_class, train), test) for train, test in parts]


def _hash(seed: int, text: str, label: str) -> bytes:
    """The same on every machine and in every run."""
    return hashlib.blake2b(f"{seed}\0{text}\0{label}".encode(), digest_size=8).digest()
