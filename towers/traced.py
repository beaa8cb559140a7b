"""Parts of a graph that are traced once, however many graphs they become part of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def traced_once(function: Callable[..., Any], *signature: Any) -> Callable[..., Any]:
    """A function whose graph is made at the first call, and called by every other graph after.

    What six signatures of an export have in common is then traced, written and loaded once, not six
    times; TensorFlow puts it back in its place before it runs.

    The result is no `tf.function` on purpose: as an attribute of a `tf.Module` such a one would be
    traced and saved also where nothing calls it.

    Args:
        function: of tensors.
        *signature: their specifications; nested as the arguments are.
    """
    graph = tf.function(function, input_signature=list(signature), autograph=False)
    return lambda *tensors: graph(*tensors)
