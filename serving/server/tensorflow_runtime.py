"""How TensorFlow computes in a server's process."""

from __future__ import annotations

import os
from pathlib import Path

import tensorflow as tf

from serving.manifest import MANIFEST_FILE
from serving.versions import version_folders

# Without it, oneDNN lays out a weight anew for each product that reads it from a variable. With it,
# every matrix product keeps its weights in the layout that it took first.
_FROZEN_WEIGHTS = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"


def set_up_tensorflow(
    *model_base_paths: str | Path,
    intra_op_threads: int | None = None,
    inter_op_threads: int | None = None,
) -> None:
    """Settles what TensorFlow asks once in the life of a process.

    To be called before it computes for the first time.

    Where the folders hold exports of this package and nothing else, TensorFlow is told that weights
    do not change, which exports promise and others' graphs may not; whatever the environment says
    of it already stays (``TF_ONEDNN_ASSUME_FROZEN_WEIGHTS``).

    Args:
      model_base_paths: The folders of the models; each holds one folder for each version.
      intra_op_threads: How many threads share the work of one operation; 0 for one a core, None to
        leave it as it is.
      inter_op_threads: How many operations that do not need each other are run at once; likewise.

    Raises:
      RuntimeError: TensorFlow has computed already, and the number of threads cannot be changed.
    """
    versions = [path for base in model_base_paths for path in version_folders(base).values()]
    if versions and all((path / MANIFEST_FILE).is_file() for path in versions):
        os.environ.setdefault(_FROZEN_WEIGHTS, "1")
    if intra_op_threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)
    if inter_op_threads is not None:
        tf.config.threading.set_inter_op_parallelism_threads(inter_op_threads)
