"""Text towers for few-shot retrieval: encoders, losses and the two-tower model, in Keras 3.

Names are imported on first use, so that `towers.losses` and `towers.TextEncoder` work on a machine
without TensorFlow (Keras on JAX) and the command line answers `--help` at once.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# TensorFlow Recommenders, which the indexes of `serving` build on, needs Keras 2 as `tf.keras`. The
# choice is made once, when `tf.keras` is first touched, and TensorFlow Text touches it on import.
# `import keras` stays Keras 3, which is what everything here uses.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

if TYPE_CHECKING:
    from towers.array_tokenizer import ArrayTokenizer
    from towers.attribute_fusion import AttributeFusion
    from towers.attribute_reader import AttributeReader
    from towers.attributes import learn_attributes
    from towers.checkpoint import DEFAULT_PRESET, load_backbone, load_vocabulary
    from towers.errors import InputError
    from towers.item_text import ItemTemplate
    from towers.losses import InBatchSoftmax, in_batch_softmax
    from towers.pooling import Pooling
    from towers.recommender import Recommender
    from towers.retriever import Retriever, TextSettings
    from towers.text_encoder import TextEncoder
    from towers.tokenizer import Tokenizer
    from towers.two_tower import TwoTower
    from towers.user_tower import UserTower

__version__ = "0.1.0"

_HOMES = {
    "ArrayTokenizer": "array_tokenizer",
    "AttributeFusion": "attribute_fusion",
    "AttributeReader": "attribute_reader",
    "DEFAULT_PRESET": "checkpoint",
    "InBatchSoftmax": "losses",
    "InputError": "errors",
    "ItemTemplate": "item_text",
    "Pooling": "pooling",
    "Recommender": "recommender",
    "Retriever": "retriever",
    "TextEncoder": "text_encoder",
    "TextSettings": "retriever",
    "Tokenizer": "tokenizer",
    "TwoTower": "two_tower",
    "UserTower": "user_tower",
    "in_batch_softmax": "losses",
    "learn_attributes": "attributes",
    "load_backbone": "checkpoint",
    "load_vocabulary": "checkpoint",
}

__all__ = [
    "DEFAULT_PRESET",
    "ArrayTokenizer",
    "AttributeFusion",
    "AttributeReader",
    "InBatchSoftmax",
    "InputError",
    "ItemTemplate",
    "Pooling",
    "Recommender",
    "Retriever",
    "TextEncoder",
    "TextSettings",
    "Tokenizer",
    "TwoTower",
    "UserTower",
    "in_batch_softmax",
    "learn_attributes",
    "load_backbone",
    "load_vocabulary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'towers' has no attribute {name!r}")
    return getattr(importlib.import_module(f"towers.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
