"""One batch spread over several devices: what each of them needs to see all of it.

A softmax over the batch is no sum over its rows: its negatives are the other rows. Devices that see
their own rows alone compute another loss, one with fewer negatives the more devices there are. So
embeddings are gathered across the replicas of a `tf.distribute` strategy, and the loss is that of
the whole batch everywhere (as in CLIP: Radford et al. 2021, figure 3, and GradCache: Gao et al.
2021, section 3.3).

Under `keras.distribution` (JAX) there is nothing to do: arrays are global there, and so is a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

# Inputs that are encoded, of which the loss sees the vectors alone.
_ENCODED = ("query", "item", "negatives", "cached")
# Inputs with a column for each candidate of one device.
_LOCAL = ("ignored", "teacher_scores")


def replica_count() -> int:
    """Number of replicas that train on parts of this batch; 1 outside of a strategy."""
    context = _context()
    return 1 if context is None else context.num_replicas_in_sync


def whole_batch(x: Mapping[str, Any], sample_weight: Any) -> tuple[dict[str, Any], Any]:
    """What a loss needs beside vectors, of the batch of all replicas: ids, probabilities, weights.

    Args:
        x: inputs of this replica, as `towers.TwoTower` takes them.
        sample_weight: float ``[b]`` or None.

    Returns:
        The inputs and the sample weights, with the rows of all replicas in the order of replicas;
        texts, which are encoded where they are, stay as they were given.

    Raises:
        ValueError: an input has a column for each candidate, and there are several replicas.
    """
    if replica_count() == 1:
        return dict(x), sample_weight
    for name in _LOCAL:
        if name in x:
            raise ValueError(
                f"{name!r} speaks of the candidates of one device, and there are "
                f"{replica_count()}: give ids (item_ids, positive_ids) instead"
            )
    rows = {name: value for name, value in x.items() if name not in _ENCODED}
    if sample_weight is not None:
        rows["sample_weight"] = sample_weight
    # Names in order: all replicas must gather the same tensor at the same time.
    whole = {name: _gathered(rows[name]) for name in sorted(rows)}
    sample_weight = whole.pop("sample_weight", None)
    return {**x, **whole}, sample_weight


def whole_vectors(x: Mapping[str, Any], vectors: Mapping[str, Any]) -> dict[str, Any]:
    """The embeddings of the batch of all replicas; their gradient goes back to where they are from.

    Args:
        x: inputs of this replica.
        vectors: ``{"query": [b, d], "item": [c, d]}`` of it: own items, negatives, cached.

    Returns:
        The same of all replicas, ``[B, d]`` and ``[C, d]``: own items of all, negatives of all,
        cached ones of all, so that a query and its own item stand in the same row.
    """
    if replica_count() == 1:
        return dict(vectors)
    parts, start = list[Any](), 0
    sizes = [ops.shape(vectors["query"])[0]]
    if "negatives" in x:
        sizes.append(ops.shape(x["negatives"]["token_ids"])[0])
    if "cached" in x:
        sizes.append(ops.shape(x["cached"])[0])
    for size in sizes:
        parts.append(_gathered(vectors["item"][start : start + size]))
        start += size
    return {"query": _gathered(vectors["query"]), "item": ops.concatenate(parts)}


def _gathered(rows: Any) -> Any:
    """The rows of all replicas, one after the other."""
    import tensorflow as tf

    # The identity: an input has no device yet, and several workers ask for one.
    return tf.distribute.get_replica_context().all_gather(tf.identity(rows), axis=0)


def _context() -> Any:
    """The replica context of TensorFlow; None under other backends and between replicas."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context()
