"""Whether pairs hold anything to learn from: a query's item, and another one that is not."""

from __future__ import annotations

from collections.abc import Sequence

from towers.errors import InputError
from training.config import FitConfig
from training.pairs import Pairs


def has_contrast(pairs: Pairs, item_texts: Sequence[str], config: FitConfig) -> bool:
    """Whether training on pairs meets items that are not a query's own.

    Those are the items of other pairs, or random and mined ones of the catalogue where the
    configuration asks for them. Items of equal text are one item to the towers.
    """
    rows = pairs.item_row.tolist()
    if config.catalog_negatives or config.hard_negatives or config.cached_negatives:
        return len(rows) > 0 and len(set(item_texts)) > 1
    return len({item_texts[row] for row in rows}) > 1


def require_contrast(pairs: Pairs, item_texts: Sequence[str], config: FitConfig) -> None:
    """Raises `InputError` where training could not change anything, and says what is needed."""
    if has_contrast(pairs, item_texts, config):
        return
    count = len(pairs.item_row)
    found = (
        "the catalogue has one item only"
        if len(set(item_texts)) < 2
        else f"{'the only pair has' if count == 1 else f'all {count} pairs have'} the same item"
    )
    raise InputError(
        f"nothing to learn from: {found}, and a query learns from items that are not its own. "
        "Needed: pairs of two different items or more, or negatives from a larger catalogue "
        "(catalog_negatives in [fit]); --method zero-shot needs neither"
    )
