"""Loading a SavedModel together with the op libraries its graph needs."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path
from typing import Any

from towers.errors import InputError

GRAPH_FILE = "saved_model.pb"


def load_export(path: str | Path) -> Any:
    """Loads one version folder, `saved_models/NAME/VERSION`.

    Works for any SavedModel, with or without a manifest: what the graph needs is read from the
    graph itself.

    Args:
      path: The folder that holds `saved_model.pb`.

    Returns:
      What `tf.saved_model.load` returns: an object with `.signatures`.

    Raises:
      InputError: The folder holds no SavedModel, or a library it needs is not installed.
    """
    path = Path(path)
    if not (path / GRAPH_FILE).is_file():
        raise InputError(
            f"{path} is not an exported version: it holds no {GRAPH_FILE}. "
            "Name a version folder, such as saved_models/NAME/1."
        )
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the tokenizer's ops

    if uses_scann(path):
        try:
            from scann import scann_ops  # noqa: F401  registers the index's ops
        except ImportError as error:
            raise InputError(f"{path} holds a ScaNN index: install the scann package.") from error
    loaded = tf.saved_model.load(str(path))
    release = getattr(loaded, "release", None)
    if release is not None:
        # ScaNN's searcher is a copy of the items that outlives the module it was loaded with.
        weakref.finalize(loaded, release).atexit = False
    return loaded


def uses_scann(path: str | Path) -> bool:
    """Whether the graph in this folder calls ScaNN's ops, which a stock TF Serving lacks.

    Op names stand in the serialised graph as plain text, and every op of ScaNN is named
    `Scann>...`: looking for that is quicker than parsing the graph a second time.
    """
    with (
        (Path(path) / GRAPH_FILE).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph,
    ):
        return graph.find(b"Scann>") >= 0
