"""A gRPC and REST server for any SavedModel, speaking TensorFlow Serving's API."""

from __future__ import annotations
