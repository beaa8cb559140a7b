"""Gradients inside a loss, on the backends that training runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def gradient(function: Callable[[Any], tuple[Any, Any]], at: Any) -> tuple[Any, Any]:
    """The gradient of a function's first result, and its second result.

    Keras has no gradients of its own, hence one way for each backend.

    Args:
        function: from a nest of float tensors to a scalar and a nest of anything.
        at: the nest of tensors.

    Returns:
        A nest like `at`, and the second result of the function. Both can be differentiated once
        more by what surrounds the call.

    Raises:
        NotImplementedError: the backend is neither TensorFlow nor JAX.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(at)
            value, other = function(at)
        slopes = tape.gradient(value, at, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        # Rows that were gathered have sparse gradients.
        return tf.nest.map_structure(tf.convert_to_tensor, slopes), other
    if backend == "jax":
        import jax

        return jax.grad(function, has_aux=True)(at)
    raise NotImplementedError(f"gradients inside a loss need TensorFlow or JAX, not {backend}")
