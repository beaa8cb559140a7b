"""Export, index, server and client of a retrieval model."""

from __future__ import annotations

import os

# TensorFlow Recommenders refuses to import unless tf.keras is Keras 2. The variable is read when
# tf.keras is first touched, so it has to be set before any module of this package imports TFRS.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
