"""Columns of the catalogue in the graph: which items a request allows, and what it is told of them.

A column holds texts (category, brand, availability) or numbers (price).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow as tf

from serving.stored_items import Column, is_number
from towers.errors import InputError

TEXT, NUMBER = "text", "number"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TAKEN = ("query", "exclude", "item_ids", "scores", "item_id")


class ItemColumns(tf.Module):
    """Values of named columns for each item.

    Of each column a request says which values it allows:

    - texts, string ``[N, V]``: an item is allowed whose value is one of the V. Empty strings say
      nothing, so rows of a batch may name different numbers of values; a row that names none allows
      all items.
    - numbers, float32 ``[N, B]``: B is 0 (all items), 1 (least) or 2 (least and most), both
      inclusive. An item without a value is allowed by B = 0 alone.

    Args:
        columns: column name to one value for each item; empty texts, None and NaN are no value.
        item_count: number of items.
        kinds: column name to ``text`` or ``number``, where the values alone may not tell: a column
            of a part of a catalogue may have none.

    Raises:
        InputError: a name that cannot be that of an input, a column that is not as long as there
            are items or holds both texts and numbers.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        item_count: int,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name="item_columns")
        for name, values in columns.items():
            _check(name, values, item_count)
        kinds = kinds or {name: kind_of(values) for name, values in columns.items()}
        self._columns = {
            name: _NumberColumn(values) if kinds[name] == NUMBER else _TextColumn(values)
            for name, values in columns.items()
        }
        # As a proxy, because a tf.Module would wrap a dict and save it.
        self._kinds = MappingProxyType({name: one.kind for name, one in self._columns.items()})

    @property
    def kinds(self) -> dict[str, str]:
        """Column name to ``text`` or ``number``."""
        return dict(self._kinds)

    @property
    def inputs(self) -> dict[str, tf.TensorSpec]:
        """Column name to what a request gives for it."""
        return {
            name: tf.TensorSpec([None, None], tf.string if kind == TEXT else tf.float32, name)
            for name, kind in self._kinds.items()
        }

    def allowed(self, wanted: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Which items all columns allow.

        Args:
            wanted: column name to values as in `inputs`, N rows each.

        Returns:
            bool ``[N, items]``.
        """
        masks = [column.allowed(wanted[name]) for name, column in self._columns.items()]
        return tf.reduce_all(tf.stack(masks), axis=0)

    def values_at(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """What is known of some items.

        Args:
            rows: int ``[N, k]``, -1 for none.

        Returns:
            Column name to its values, string or float32 ``[N, k]``; an empty string or 0 for none.
        """
        return {
            name: tf.where(
                rows >= 0, tf.gather(tf.convert_to_tensor(one.shown), tf.maximum(rows, 0)), one.none
            )
            for name, one in self._columns.items()
        }


def kind_of(values: Column) -> str:
    """Whether a column holds ``text`` or ``number``; see `serving.stored_items.is_number`."""
    return NUMBER if is_number(values) else TEXT


class _TextColumn(tf.Module):
    kind, none = TEXT, ""

    def __init__(self, values: Column) -> None:
        super().__init__(name="text_column")
        texts = ["" if value is None else str(value) for value in values]
        distinct, codes = np.unique(np.array(texts, dtype=object), return_inverse=True)
        self.shown = tf.Variable(tf.constant(texts), trainable=False)
        # Codes from 1 on; 0 is what no item has, unless it has no value.
        codes = np.where([bool(text) for text in texts], codes + 1, 0).astype(np.int32)
        self._codes = tf.Variable(codes, trainable=False)
        self._code_count = len(distinct) + 1
        self._code_of = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(distinct.tolist()),
                tf.range(1, self._code_count, dtype=tf.int32),
            ),
            default_value=0,
        )

    def allowed(self, wanted: tf.Tensor) -> tf.Tensor:
        codes = self._code_of.lookup(wanted)  # [N, V]
        codes = tf.where(wanted == "", 0, codes)
        named = tf.reduce_any(tf.one_hot(codes, self._code_count, True, False), axis=1)  # [N, C]
        known = tf.range(self._code_count) > 0
        anything = ~tf.reduce_any(wanted != "", axis=1, keepdims=True)  # [N, 1]
        return anything | tf.gather(named & known, tf.convert_to_tensor(self._codes), axis=1)


class _NumberColumn(tf.Module):
    kind, none = NUMBER, 0.0

    def __init__(self, values: Column) -> None:
        super().__init__(name="number_column")
        numbers = np.array([np.nan if value is None else value for value in values], np.float32)
        self._numbers = tf.Variable(numbers, trainable=False)
        self.shown = tf.Variable(np.nan_to_num(numbers, nan=0.0), trainable=False)

    def allowed(self, wanted: tf.Tensor) -> tf.Tensor:
        least = tf.pad(wanted[:, :1], [[0, 0], [0, 1]], constant_values=-np.inf)[:, :1]  # [N, 1]
        most = tf.pad(wanted[:, 1:2], [[0, 0], [0, 1]], constant_values=np.inf)[:, :1]
        numbers = tf.convert_to_tensor(self._numbers)[None]  # [1, items], NaN for none
        anything = tf.shape(wanted)[1] == 0
        return anything | ((numbers >= least) & (numbers <= most))


def _check(name: str, values: Any, item_count: int) -> None:
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise InputError(
            f"{name!r} cannot be the name of a column in an export: use letters, digits and '_', "
            f"and none of {', '.join(_TAKEN)}"
        )
    if len(values) != item_count:
        raise InputError(f"column {name!r} has {len(values)} values for {item_count} items")
    try:
        is_number(values)
    except InputError as error:
        raise InputError(f"column {name!r}: {error}") from error
