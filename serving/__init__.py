"""Export, index, server and client of a retrieval model."""

from __future__ import annotations

import towers  # noqa: F401  before TensorFlow Recommenders: sees to it that tf.keras is Keras 2
