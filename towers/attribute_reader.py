"""Attributes of rendered items as features, in a graph as in Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from towers.attributes import Attribute, vector_width
from towers.errors import InputError
from towers.item_text import (
    CATEGORY,
    NUMBER,
    SEPARATOR,
    VALUE_SEPARATOR,
    VECTOR,
    VECTOR_UNIT,
)

NO_CATEGORY = -1

_ROWS = 4096
_NUMBER = r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?"


class AttributeReader(tf.Module):
    """Reads attributes from rendered items; training and serving read them by the same ops.

    Numbers become piecewise linear features between the quantiles of the catalogue, as in Gorishniy
    et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning"
    (https://arxiv.org/abs/2203.05556, section 3.2), less their mean. A number that is missing, or
    that cannot be read, has features of 0: it counts as an average one. Categories become rows of a
    table. Vectors stay as they are, and zeros where there is none.

    Args:
        attributes: see `learn_attributes`, in the order of the values behind a text.
    """

    def __init__(self, attributes: Sequence[Attribute]) -> None:
        super().__init__(name="attribute_reader")
        # A tuple of plain values: a tf.Module would wrap and save a list.
        self._attributes = tuple(attributes)
        self._tables = [
            _table(attribute.vocabulary) if attribute.kind == CATEGORY else None
            for attribute in attributes
        ]

    def __call__(self, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Features of items.

        Args:
            items: string ``[N]``; a text alone is an item that lacks all attributes.

        Returns:
            ``values``, float32 ``[N, F]``: numbers and vectors side by side; ``categories``, int32
            ``[N, C]``: for each attribute that is a category, in as many columns as an item has
            values at most, their rows in a table of all of them, -1 where there are fewer.
        """
        count = len(self._attributes)
        cells = tf.strings.split(items, SEPARATOR).to_tensor("", shape=[None, 1 + count])
        none = tf.zeros([tf.shape(items)[0], 0])
        values, categories, first = [none], [tf.cast(none, tf.int32)], 0
        for place, (attribute, table) in enumerate(
            zip(self._attributes, self._tables, strict=True)
        ):
            cell = cells[:, 1 + place]
            if attribute.kind == NUMBER:
                values.append(_number_features(cell, attribute))
            elif attribute.kind == VECTOR:
                values.append(_vector_features(cell, attribute.width))
            else:
                assert table is not None
                names = _category_names(cell, attribute.most)
                categories.append(tf.where(names == "", NO_CATEGORY, first + table.lookup(names)))
                first += attribute.category_count
        return {"values": tf.concat(values, axis=1), "categories": tf.concat(categories, axis=1)}

    def read(self, items: Sequence[str]) -> dict[str, np.ndarray]:
        """The same of any number of items, as arrays.

        Raises:
            InputError: a vector is not as long as those of the catalogue that was learned from.
        """
        self._check_vectors(items)
        parts = [
            self(tf.constant(list(items[start : start + _ROWS]), tf.string))
            for start in range(0, max(1, len(items)), _ROWS)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _check_vectors(self, items: Sequence[str]) -> None:
        for place, attribute in enumerate(self._attributes):
            if attribute.kind != VECTOR:
                continue
            for item in items:
                cells = item.split(SEPARATOR)
                if len(cells) > 1 + place and cells[1 + place]:
                    width = vector_width(cells[1 + place])
                    if width != attribute.width:
                        raise InputError(
                            f"attribute {attribute.name!r} of {cells[0]!r} has {width} numbers; "
                            f"the towers were trained with {attribute.width}"
                        )


def _table(vocabulary: Sequence[str]) -> tf.lookup.StaticHashTable:
    # Row 0 is for all others; a table without any key cannot be made, and no value is empty.
    keys = ["", *vocabulary]
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(keys), tf.range(len(keys), dtype=tf.int32)),
        default_value=0,
    )


def _category_names(cell: tf.Tensor, most: int) -> tf.Tensor:
    """String ``[N]`` to string ``[N, most]``, with "" where there are fewer."""
    if most == 1:  # a model that never saw two values takes the whole cell as one
        return cell[:, None]
    names = tf.strings.split(cell, VALUE_SEPARATOR).to_tensor("", shape=[None, most])
    return tf.strings.strip(names)


def _number_features(cell: tf.Tensor, attribute: Attribute) -> tf.Tensor:
    """String ``[N]`` to float32 ``[N, bins]``."""
    readable = tf.strings.regex_full_match(cell, _NUMBER)
    number = tf.strings.to_number(tf.where(readable, cell, "0"))[:, None]
    edges = np.array(attribute.edges, np.float32)
    features = (number - edges[:-1]) / np.diff(edges)
    features = tf.clip_by_value(features, 0.0, 1.0) - np.array(attribute.centre, np.float32)
    return tf.where(readable[:, None], features, 0.0)


def _vector_features(cell: tf.Tensor, width: int) -> tf.Tensor:
    """String ``[N]`` to float32 ``[N, width]``."""
    raw = tf.io.decode_base64(cell)
    fixed = tf.io.decode_raw(raw, tf.int16, fixed_length=2 * width)
    return tf.cast(fixed, tf.float32) / VECTOR_UNIT
