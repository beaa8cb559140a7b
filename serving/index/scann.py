"""Approximate search with ScaNN's TensorFlow ops.

References: Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector
Quantization"; ScaNN's docs/algorithms.md for the sizes at which its parts pay.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import numpy as np
import tensorflow as tf
from scann import scann_ops

from serving.index.item_index import ItemIndex

_HASHING_FROM = 20_000
TREE_FROM = 100_000
_DIMENSIONS_PER_BLOCK = 2
_CODEBOOK_SIZE = 16  # centroids of a block: ScaNN refuses to learn them from fewer items
_ANISOTROPIC_THRESHOLD = 0.2
_LEAVES_SEARCHED = 0.1
_REORDERED_PER_RESULT = 20


class ScannIndex(ItemIndex):
    """ScaNN inside the graph.

    Below 20,000 items it scores every item; below 100,000 it scores hashed items and reorders the
    best with their full embeddings; above that it does so inside the nearest leaves of a tree of
    about sqrt(N) leaves. Scores are exact, being those of the reordering; what can be missed is an
    item, and where the searched leaves hold fewer than k items, so many places stay empty. A server
    needs ScaNN's ops to load the exported graph: TF Serving's stock image has none.

    Args:
        k: see `ItemIndex`.
        leaves: leaves of the tree; 0 for none; chosen from the number of items if None. ScaNN
            refuses more leaves than items, so there are never more.
        leaves_to_search: leaves looked into for each query; a tenth if None.
        reorder: hashed candidates scored again with their full embeddings; 20 for each result if
            None. Fewer than k would cut the answer short, so at least k are, always.
        dimensions_per_block: dimensions that share the four bits of a hash: two if None, which is
            two bits a dimension; four make hashes half as large, and coarser.
        query_model: see `ItemIndex`.
        name: see `ItemIndex`.
    """

    kind = "scann"

    def __init__(
        self,
        k: int = 10,
        *,
        leaves: int | None = None,
        leaves_to_search: int | None = None,
        reorder: int | None = None,
        dimensions_per_block: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(k, **kwargs)
        self._leaves_wanted = leaves
        self._leaves_to_search_wanted = leaves_to_search
        self._reorder_wanted = reorder
        self._block_wanted = dimensions_per_block or _DIMENSIONS_PER_BLOCK
        self.leaves = 0
        self.hashed = False
        self.leaves_to_search = 0
        self.reorder = 0
        self._state: tf.Module | None = None
        self._searcher_name = ""

    @property
    def parameters(self) -> dict[str, int]:
        """Leaves, leaves searched, candidates reordered, block; 0 where a part is not used."""
        return {
            "leaves": self.leaves,
            "leaves_to_search": self.leaves_to_search,
            "reorder": self.reorder,
            "dimensions_per_block": self._block if self.hashed else 0,
        }

    @property
    def _block(self) -> int:
        return min(self._block_wanted, self.embedding_dim)

    @property
    def hash_bytes(self) -> int:
        """Size of one hashed item: four bits for each block of dimensions."""
        return math.ceil(self.embedding_dim / self._block / 2)

    def is_exact(self) -> bool:
        """False."""
        return False

    @property
    def trackables(self) -> list[Any]:
        """See `ItemIndex`."""
        return [self._identifiers, self._state]

    def embeddings_at(self, rows: tf.Tensor) -> tf.Tensor:
        """See `ItemIndex`."""
        assert self._state is not None
        return tf.gather(tf.convert_to_tensor(self._state.dataset), rows)

    def scores(self, queries: tf.Tensor) -> tf.Tensor:
        """See `ItemIndex`."""
        assert self._state is not None
        return tf.matmul(queries, tf.convert_to_tensor(self._state.dataset), transpose_b=True)

    @tf.function(input_signature=[])
    def release(self) -> None:
        """Frees the searcher, which is ScaNN's own copy of the items.

        TensorFlow keeps it for as long as the process lives, even when the index or the loaded
        SavedModel is gone. The next search makes a new one.
        """
        tf.raw_ops.DestroyResourceOp(resource=self._searcher(), ignore_lookup_error=True)

    def _build(self, embeddings: np.ndarray) -> None:
        if self._state is not None:
            self.release()
        self._set_sizes(len(embeddings))
        builder = scann_ops.builder(embeddings, self._k, "dot_product")
        if self.leaves:
            builder = builder.tree(self.leaves, self.leaves_to_search, quantize_centroids=True)
        if self.hashed:
            builder = builder.score_ah(
                self._block,
                anisotropic_quantization_threshold=_ANISOTROPIC_THRESHOLD,
            ).reorder(self.reorder)
        else:
            builder = builder.score_brute_force()
        built = builder.build()
        self._state = built.serialize_to_module()
        tf.raw_ops.DestroyResourceOp(resource=built.searcher_handle)
        # A name of its own, or two indexes in one process could be given the same searcher.
        self._searcher_name = f"scann_{uuid.uuid4().hex}"

    def _set_sizes(self, count: int) -> None:
        leaves = self._leaves_wanted
        if leaves is None:
            leaves = math.isqrt(count) if count >= TREE_FROM else 0
        self.leaves = min(leaves, count) if count >= _CODEBOOK_SIZE else 0
        self.hashed = self.leaves > 0 or count >= _HASHING_FROM
        searched = self._leaves_to_search_wanted or math.ceil(self.leaves * _LEAVES_SEARCHED)
        self.leaves_to_search = min(searched, self.leaves)
        reorder = self._reorder_wanted or self._k * _REORDERED_PER_RESULT
        self.reorder = min(max(reorder, self._k), count) if self.hashed else 0

    def _searcher(self) -> tf.Tensor:
        """A handle to the searcher, which is made from the variables the first time."""
        assert self._state is not None
        state = self._state
        return scann_ops.tensors_to_scann(
            state.dataset,
            state.scann_config,
            state.serialized_partitioner,
            state.datapoint_to_token,
            state.ah_codebook,
            state.hashed_dataset,
            state.int8_dataset,
            state.int8_multipliers,
            state.dp_norms,
            shared_name=self._searcher_name,
        )

    def _search(self, queries: tf.Tensor, k: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.shape(queries)[0]
        # ScaNN fails on an empty batch: it gets one query, and its answer is cut off again.
        queries = tf.pad(queries, [[0, tf.maximum(1 - batch, 0)], [0, 0]])
        result = scann_ops.ScannSearcher(self._searcher()).search_batched_parallel(
            queries,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=tf.maximum(k, self.reorder),
            leaves_to_search=self.leaves_to_search if self.leaves else -1,
        )
        scores, rows = result.distances[:batch], result.indices[:batch]
        # Rows shorter than the widest are filled up with index 0 and NaN.
        return scores, tf.where(tf.math.is_nan(scores), -1, rows)
