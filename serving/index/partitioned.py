"""Approximate search with TensorFlow's own ops: an inverted file over k-means partitions.

Reference: Jégou, Douze and Schmid 2011, "Product Quantization for Nearest Neighbor Search", section
IV, whose inverted file this is, with whole vectors in place of codes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from serving.index.item_index import ItemIndex

_PARTITIONS_PER_ROOT = 4  # of the number of items; measured: docs/index.md
_SEARCHED = 0.1
_SAMPLES_PER_PARTITION = 32
_K_MEANS_ROUNDS = 12
_TINY = 1e-12
_ROWS_AT_A_TIME = 16_384
_QUERIES_SIDE_BY_SIDE = 4  # each holds the embeddings of its candidates


class PartitionedIndex(ItemIndex):
    """Scores the items of the partitions nearest to a query; an unmodified TF Serving loads it.

    Items are parted by k-means into about 4 sqrt(N) partitions. A query looks into those whose
    centroids point most nearly its way, `partitions_to_search` or as many more as it takes to
    see `k` items: what can be missed is a better item elsewhere, never a place. Scores are exact.

    Args:
        k: see `ItemIndex`.
        partitions: number of partitions, at most one for each item; 4 sqrt(N) if None.
        partitions_to_search: partitions looked into for each query; a tenth if None.
        query_model: see `ItemIndex`.
        name: see `ItemIndex`.

    Example:
        >>> index = PartitionedIndex(k=1, partitions=2, partitions_to_search=1)
        >>> index = index.index([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], ["mug", "cup", "rake"])
        >>> index(tf.constant([[0.9, 0.1]]))[1]
        <tf.Tensor: shape=(1, 1), dtype=string, numpy=array([[b'mug']], dtype=object)>
    """

    kind = "partitioned"

    def __init__(
        self,
        k: int = 10,
        *,
        partitions: int | None = None,
        partitions_to_search: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(k, **kwargs)
        self._partitions_wanted = partitions
        self._partitions_to_search_wanted = partitions_to_search
        self.partitions = 0
        self.partitions_to_search = 0
        self._embeddings: tf.Variable | None = None
        self._centroids: tf.Variable | None = None
        self._members: tf.Variable | None = None
        self._offsets: tf.Variable | None = None

    @property
    def parameters(self) -> dict[str, int]:
        """Number of partitions, and how many of them a query looks into."""
        return {
            "partitions": self.partitions,
            "partitions_to_search": self.partitions_to_search,
        }

    def is_exact(self) -> bool:
        """False."""
        return False

    @property
    def trackables(self) -> list[Any]:
        """See `ItemIndex`."""
        parts = [self._embeddings, self._centroids, self._members, self._offsets]
        return [self._identifiers, *parts]

    def embeddings_at(self, rows: tf.Tensor) -> tf.Tensor:
        """See `ItemIndex`."""
        return tf.gather(tf.convert_to_tensor(self._embeddings), rows)

    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """See `ItemIndex`."""
        return tf.matmul(queries, tf.convert_to_tensor(self._embeddings), transpose_b=True)

    def _build(self, embeddings: np.ndarray) -> None:
        count = len(embeddings)
        wanted = self._partitions_wanted or _PARTITIONS_PER_ROOT * math.isqrt(count)
        centroids, nearest = _k_means(embeddings, min(wanted, count))
        self.partitions = len(centroids)
        searched = self._partitions_to_search_wanted or math.ceil(self.partitions * _SEARCHED)
        self.partitions_to_search = min(searched, self.partitions)
        sizes = np.bincount(nearest, minlength=self.partitions)
        self._embeddings = _constant(embeddings, "item_embeddings")  # [N, d]
        self._centroids = _constant(centroids, "centroids")  # [P, d]
        # Items by partition, those of one by row; and where each partition begins.
        members = np.argsort(nearest, kind="stable").astype(np.int32)
        self._members = _constant(members, "members")  # [N]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        self._offsets = _constant(offsets, "offsets")  # [P + 1]

    def _search(self, queries: tf.Tensor, k: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Read before gathering: a variable that has been gathered from is copied at every read.
        embeddings = tf.convert_to_tensor(self._embeddings)
        members = tf.convert_to_tensor(self._members)
        offsets = tf.convert_to_tensor(self._offsets)
        width = tf.minimum(k, self.item_count)
        likeness = tf.matmul(queries, tf.convert_to_tensor(self._centroids), transpose_b=True)
        order = tf.math.top_k(likeness, self.partitions).indices  # [Q, P]
        sizes = tf.gather(offsets[1:] - offsets[:-1], order)
        seen_before = tf.cumsum(sizes, axis=1, exclusive=True)
        searched = (tf.range(self.partitions) < self.partitions_to_search) | (seen_before < width)

        def search_one(inputs: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
            query, order, searched = inputs
            parts = tf.boolean_mask(order, searched)
            places = tf.ragged.range(tf.gather(offsets, parts), tf.gather(offsets, parts + 1))
            rows = tf.gather(members, places.flat_values)  # [candidates], at least `width`
            scores = tf.linalg.matvec(tf.gather(embeddings, rows), query)
            best = tf.math.top_k(scores, width)
            return best.values, tf.gather(rows, best.indices)

        shape = [min(k, self.item_count) if isinstance(k, int) else None]
        return tf.map_fn(
            search_one,
            (queries, order, searched),
            fn_output_signature=(tf.TensorSpec(shape, tf.float32), tf.TensorSpec(shape, tf.int32)),
            parallel_iterations=_QUERIES_SIDE_BY_SIDE,
        )


def _k_means(embeddings: np.ndarray, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts items by k-means.

    Returns:
        Directions of the centroids, float32 ``[P, d]`` of length one, and the row of the nearest
        centroid for each item, int ``[N]``. No centroid is without an item.
    """
    draw = np.random.default_rng(0)
    sample = np.sort(draw.permutation(len(embeddings))[: partitions * _SAMPLES_PER_PARTITION])
    k_means = KMeans(partitions, init="random", n_init=1, max_iter=_K_MEANS_ROUNDS, random_state=0)
    with warnings.catch_warnings():
        # Fewer distinct items than partitions: the empty ones are dropped below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        k_means.fit(embeddings[sample])
    nearest = np.concatenate(
        [
            k_means.predict(embeddings[start : start + _ROWS_AT_A_TIME])
            for start in range(0, len(embeddings), _ROWS_AT_A_TIME)
        ]
    )
    used, nearest = np.unique(nearest, return_inverse=True)
    centroids = k_means.cluster_centers_[used]
    # As directions: a wide partition has a short centroid, and is no less likely to hold the best.
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), _TINY)
    return centroids.astype(np.float32), nearest


def _constant(array: np.ndarray, name: str) -> tf.Variable:
    return tf.Variable(array, trainable=False, name=name)
