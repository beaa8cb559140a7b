"""What every index promises, whatever it searches with."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from tensorflow_recommenders.layers.factorized_top_k import TopK

from towers.errors import InputError

EMPTY_ID = ""
"""The id in a place for which there is no candidate."""

FLOOR_SCORE = -1e9
"""The score beside an empty id: far below every cosine and exact in float32 and JSON, neither of
which can be said of an infinity (not every REST client reads one) or of the lowest float32."""


class ItemIndex(TopK):
    """An index over items with string ids, for use alone, inside TFRS, or in an exported graph.

    Every answer is exactly `k` wide, best first, and holds no NaN and no item twice. Where there
    are fewer than `k` candidates, `EMPTY_ID` and `FLOOR_SCORE` fill the rest. An empty batch gets
    an empty answer, ``[0, k]``.

    Args:
        k: results for each query, unless told otherwise in a call; may exceed the number of items.
        query_model: turns what the index is called with into embeddings; none if None.
        name: the name of the layer.

    Raises:
        InputError: `k` is not a positive integer.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        k: int = 10,
        *,
        query_model: Callable[[Any], tf.Tensor] | None = None,
        name: str | None = None,
    ) -> None:
        check_k(k)
        super().__init__(k=int(k), name=name)
        self.query_model = query_model
        self._identifiers: tf.Variable | None = None
        self._embedding_dim = 0

    @property
    def k(self) -> int:
        """Results for each query."""
        return self._k

    @property
    def item_count(self) -> int:
        """Number of items."""
        return int(self._indexed_identifiers().shape[0])

    @property
    def item_ids(self) -> tf.Tensor:
        """The item ids, string ``[N]``, in the order of the rows."""
        # Rows are gathered from what was read, here and in `embeddings_at`: once one has been
        # gathered from the variable itself, TensorFlow copies all of it at every read.
        return tf.convert_to_tensor(self._indexed_identifiers())

    @property
    def embedding_dim(self) -> int:
        """Width of an embedding."""
        return self._embedding_dim

    @property
    @abc.abstractmethod
    def parameters(self) -> dict[str, int]:
        """What the search was built and tuned with, for the manifest."""

    def index(
        self, candidates: Any, identifiers: Sequence[str] | np.ndarray | tf.Tensor | None = None
    ) -> ItemIndex:
        """Builds the index; one that was there is dropped.

        Args:
            candidates: item embeddings, float ``[N, d]``, N at least 1.
            identifiers: item ids, string ``[N]``, distinct and not empty; the row numbers as text
                if None.

        Returns:
            This index.

        Raises:
            InputError: there is no item, an embedding is not finite, or an id is empty or repeated.
        """
        embeddings = _checked_embeddings(candidates)
        if identifiers is None:
            identifiers = tf.strings.as_string(tf.range(len(embeddings)))
        self._identifiers = tf.Variable(
            checked_item_ids(identifiers, len(embeddings)), trainable=False, name="item_ids"
        )
        self._embedding_dim = embeddings.shape[1]
        self._build(embeddings)
        self._reset_tf_function_cache()
        return self

    def call(self, queries: Any, k: int | tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the items of highest dot product.

        Args:
            queries: query embeddings, float ``[Q, d]``, or what `query_model` takes.
            k: results for each query; the constructor's if None.

        Returns:
            Scores, float32 ``[Q, k]``, and item ids, string ``[Q, k]``.

        Raises:
            ValueError: `index` has not been called.
            InputError: the queries are not a matrix.
        """
        self._indexed_identifiers()  # before the queries are looked at: there may be no index yet
        k = self._k if k is None else k
        if self.query_model is not None:
            queries = self.query_model(queries)
        queries = tf.cast(tf.convert_to_tensor(queries), tf.float32)
        if queries.shape.rank != 2:
            raise InputError(f"query embeddings must be [queries, d], not {queries.shape}")
        return self.answers(*self._search(queries, k), k)

    def answers(
        self, scores: tf.Tensor, rows: tf.Tensor, k: int | tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Turns what a search found into answers of full width.

        Args:
            scores: float32 ``[Q, at most k]``, best first.
            rows: int ``[Q, at most k]``, rows of items, -1 for none.
            k: width of the answers.

        Returns:
            Scores, float32 ``[Q, k]``, and item ids, string ``[Q, k]``; in places without an item
            `FLOOR_SCORE` and `EMPTY_ID`.
        """
        item_ids = self.item_ids
        missing = [[0, 0], [0, k - tf.shape(scores)[1]]]
        scores = tf.pad(scores, missing, constant_values=FLOOR_SCORE)  # [Q, k]
        rows = tf.pad(rows, missing, constant_values=-1)
        found = (rows >= 0) & tf.math.is_finite(scores)
        scores = tf.where(found, scores, FLOOR_SCORE)
        item_ids = tf.where(found, tf.gather(item_ids, tf.maximum(rows, 0)), EMPTY_ID)
        if isinstance(k, int):
            scores.set_shape([None, k])
            item_ids.set_shape([None, k])
        return scores, item_ids

    def query_with_exclusions(
        self, queries: Any, exclusions: Any, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the best items other than some.

        TFRS's own lowers the score of an excluded item, which brings it back where nothing else is
        left; here an empty place is left empty.

        Args:
            queries: as in `call`.
            exclusions: item ids, string ``[Q, E]``; ids that are not in the index do no harm.
            k: as in `call`.

        Returns:
            As `call`.
        """
        k = self._k if k is None else k
        exclusions = tf.convert_to_tensor(exclusions, tf.string)
        scores, item_ids = self.call(queries, k + tf.shape(exclusions)[1])  # [Q, k + E]
        excluded = tf.reduce_any(item_ids[:, :, None] == exclusions[:, None, :], axis=2)
        scores = tf.where(excluded, FLOOR_SCORE, scores)
        item_ids = tf.where(excluded, EMPTY_ID, item_ids)
        scores, order = tf.math.top_k(scores, k)  # keeps the order of equal scores
        return scores, tf.gather(item_ids, order, batch_dims=1)

    @property
    @abc.abstractmethod
    def trackables(self) -> list[Any]:
        """What an exported module must hold on to for the index to work."""

    @abc.abstractmethod
    def embeddings_at(self, rows: tf.Tensor) -> tf.Tensor:
        """Item embeddings, float32 ``[R, d]``, of the rows, int ``[R]``."""

    @abc.abstractmethod
    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """Dot products with all items: float32 ``[Q, d]`` to ``[Q, N]``."""

    @abc.abstractmethod
    def _build(self, embeddings: np.ndarray) -> None:
        """Builds the search structure over float32 ``[N, d]``."""

    @abc.abstractmethod
    def _search(self, queries: tf.Tensor, k: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores, float32, and rows, int32, both ``[Q, w]`` with w at most k; row -1 is nothing."""

    def _indexed_identifiers(self) -> tf.Variable:
        if self._identifiers is None:
            raise ValueError("the index is empty: call `index` first")
        return self._identifiers


def check_k(k: Any) -> None:
    """Raises InputError unless `k` is a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k must be a positive integer, not {k!r}")


def _checked_embeddings(candidates: Any) -> np.ndarray:
    embeddings = np.asarray(candidates)
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
        raise InputError(
            "item embeddings must be a matrix of numbers, [items, d], not "
            f"{embeddings.dtype} {list(embeddings.shape)}"
        )
    if 0 in embeddings.shape:
        raise InputError(f"there is nothing to index: embeddings of shape {embeddings.shape}")
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    # NaN and infinities survive min and max, which need no mask of the matrix's size.
    finite = np.isfinite(embeddings.min(axis=1)) & np.isfinite(embeddings.max(axis=1))
    if not finite.all():
        raise InputError(
            f"{np.count_nonzero(~finite)} item embedding(s) are not finite, the first in row "
            f"{int(np.argmin(finite))}"
        )
    return embeddings


def checked_item_ids(identifiers: Any, count: int) -> tf.Tensor:
    """Item ids as a tensor, string ``[count]``.

    Raises:
        InputError: they are not strings, not `count`, or one is empty or appears twice.
    """
    try:
        ids = tf.convert_to_tensor(identifiers, tf.string)
    except (TypeError, ValueError) as error:
        raise InputError(f"item ids must be strings: {error}") from error
    if ids.shape != [count]:
        raise InputError(f"{count} items need ids of shape [{count}], not {ids.shape}")
    seen: set[bytes] = set()
    for row, item_id in enumerate(ids.numpy()):
        if not item_id:
            raise InputError(f"the item id in row {row} is empty")
        if item_id in seen:
            raise InputError(f"item id {item_id.decode(errors='replace')!r} appears twice")
        seen.add(item_id)
    return ids
