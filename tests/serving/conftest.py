"""Small SavedModels for the server's tests, and a server that runs one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from serving.server.server import ModelServer


class ShopModel(tf.Module):
    """Answers at once, with values a test can work out: `scores` are the version's number."""

    def __init__(self, version: int) -> None:
        super().__init__()
        # In a variable and a table, so that a version that is let go of too early shows.
        self.version = tf.Variable(float(version))
        self.known = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["p1", "p2"], tf.constant([1, 2], tf.int64)), -1
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")])
    def search(self, query):
        ids = tf.stack([query + "-a", query + "-b", tf.zeros_like(query)], axis=1)
        return {"item_ids": ids, "scores": tf.zeros_like(ids, tf.float32) + self.version}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "item_id")])
    def similar(self, item_id):
        row = tf.strings.as_string(self.known.lookup(item_id))
        ids = tf.stack([row, tf.zeros_like(row)], axis=1)
        return {"item_ids": ids, "scores": tf.ones_like(ids, tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")])
    def encode_query(self, query):
        length = tf.cast(tf.strings.length(query), tf.float32)
        return {"embedding": tf.stack([length, length / 10.0], axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def upper(self, text):
        return {"upper": tf.strings.upper(text, "utf-8")}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, "x"),
            tf.TensorSpec([None], tf.int64, "count"),
            tf.TensorSpec([None], tf.bool, "flag"),
        ]
    )
    def mixed(self, x, count, flag):
        return {"x": x * 2, "count": count + 1, "flag": tf.logical_not(flag)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
    def scalar(self, x):
        return {"half": x / 2}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def blob(self, image_bytes):
        return {"copy_bytes": image_bytes, "size": tf.strings.length(image_bytes)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def parse(self, text):
        return {"number": tf.strings.to_number(text)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "turns")])
    def spin(self, turns):
        # Serial work that takes as long as wanted.
        return {
            "version": self.version,
            "turns": tf.while_loop(lambda i: i < turns, lambda i: (i + 1,), [0])[0],
        }


@pytest.fixture(scope="session")
def core_ops() -> set[str]:
    """TensorFlow's own ops, by the registry of a process that has loaded no other library."""
    code = (
        "from tensorflow.python.framework.c_api_util import ApiDefMap\n"
        "print(*ApiDefMap().op_names())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="session")
def shop_export(tmp_path_factory) -> Callable[[int], Path]:
    """Returns a function that gives the version folder of a ShopModel, made once per version."""
    made: dict[int, Path] = {}

    def export(version: int) -> Path:
        if version not in made:
            model = ShopModel(version)
            made[version] = tmp_path_factory.mktemp("shop") / str(version)
            names = ["similar", "encode_query", "upper", "mixed", "scalar", "blob", "parse", "spin"]
            signatures = {"serving_default": model.search, "search": model.search}
            signatures |= {name: getattr(model, name) for name in names}
            tf.saved_model.save(model, str(made[version]), signatures=signatures)
        return made[version]

    return export


@pytest.fixture
def publish(shop_export) -> Callable[[Path, int], Path]:
    """Returns a function that puts a version into a model's folder the way an export does."""

    def put(base: Path, version: int) -> Path:
        base.mkdir(exist_ok=True)
        draft = base / f".tmp-{version}"
        shutil.copytree(shop_export(version), draft)
        return draft.rename(base / str(version))

    return put


@pytest.fixture(scope="module")
def shop_server(tmp_path_factory, shop_export) -> Iterator[ModelServer]:
    """A running server of the model `shop`, version 3."""
    base = tmp_path_factory.mktemp("models") / "shop"
    shutil.copytree(shop_export(3), base / "3")
    with ModelServer(base) as server:
        yield server
