"""What users wrote about items, joined to a catalogue."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towers.errors import InputError
from training.catalog import Catalog
from training.columns import Kind
from training.interactions import UnknownItems, count_unknown
from training.tables import content_sha256, place, read_table

_REQUIRED: dict[str, Kind] = {"item_id": "id"}
_OPTIONAL: dict[str, Kind] = {
    "user_id": "id",
    "title": "text",
    "review": "text",
    "text": "text",
    "rating": "rating",
    "timestamp": "timestamp",
}


@dataclass(frozen=True)
class Reviews:
    """Review texts with their ratings, in file order: parallel arrays, one entry a review.

    Attributes:
        texts: What was written, the title first; never empty.
        users: Who wrote it; None where the file does not say.
        item_row: int32 [reviews], row of the catalogue; -1 where it lacks the item.
        rating: float32 [reviews], 1 to 5; NaN where there is none.
        catalog: The catalogue that `item_row` points into.
        path: The file, for messages.
        sha256: see `training.tables.content_sha256`.
        unknown_items: Reviews of items that the catalogue lacks; they are kept.
        without_text: Number of rows left out because nothing was written.
        timestamp: datetime64[s] [reviews], UTC, NaT where a review has none; None without such a
            column.
    """

    texts: list[str] = field(repr=False)
    users: list[str | None] = field(repr=False)
    item_row: np.ndarray = field(repr=False)
    rating: np.ndarray = field(repr=False)
    catalog: Catalog = field(repr=False)
    path: str
    sha256: str
    unknown_items: UnknownItems = field(default_factory=UnknownItems)
    without_text: int = 0
    timestamp: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], catalog: Catalog, *, strict: bool = False
    ) -> Reviews:
        """Reads reviews in any format of `training.tables`.

        Args:
            path: The file: columns `item_id` and `review` (or `text`), and any of `title`,
                `user_id`, `rating` and `timestamp`; others are ignored.
            catalog: The items. A review of an item it lacks still tells how its author writes, and
                what of.
            strict: Whether such a review is an error.

        Raises:
            InputError: The file cannot be read, a value is not right, or there is no text.
        """
        table = read_table(path, required=_REQUIRED, optional=_OPTIONAL, keep_other=False)
        names = table.column_names
        written = "review" if "review" in names else "text"
        if written not in names:
            raise InputError(
                f"{path}: reviews need the columns item_id and review (or text); there is neither"
                " 'review' nor 'text'"
            )
        body = table.column(written).combine_chunks().cast(pa.large_string())
        kept = np.flatnonzero(body.is_valid().to_numpy(zero_copy_only=False))
        if not len(kept):
            raise InputError(f"{path}: column {written!r} is empty in every row")
        item = table.column("item_id").combine_chunks()
        item_row = catalog.row_of(item.dictionary).astype(np.int32)[item.indices.to_numpy()]
        unknown = count_unknown(item, item_row >= 0, np.arange(len(table)))
        if unknown.rows and strict:
            first = place(path, int(np.argmax(item_row < 0)))
            raise InputError(f"{path}: {unknown}; first in {first}; catalogue: {catalog.path}")
        texts = body.to_pylist()
        if "title" in names:
            titles = table.column("title").to_pylist()
            texts = [_joined(title, text) for title, text in zip(titles, texts, strict=True)]
        users = table.column("user_id").to_pylist() if "user_id" in names else [None] * len(table)
        rating = np.full(len(table), np.nan, np.float32)
        if "rating" in names:
            rating = pc.fill_null(table.column("rating"), np.nan).to_numpy()
        timestamp = table.column("timestamp").to_numpy() if "timestamp" in names else None
        return cls(
            texts=[texts[row] for row in kept],
            users=[users[row] for row in kept],
            item_row=item_row[kept],
            rating=rating[kept],
            catalog=catalog,
            path=os.fspath(path),
            sha256=content_sha256(path),
            unknown_items=unknown,
            without_text=len(table) - len(kept),
            timestamp=None if timestamp is None else timestamp[kept],
        )

    def __len__(self) -> int:
        """Returns the number of reviews."""
        return len(self.texts)


def _joined(title: str | None, text: str | None) -> str | None:
    if text is None or title is None:
        return text
    return f"{title} {text}" if title.endswith((".", "!", "?")) else f"{title}. {text}"
