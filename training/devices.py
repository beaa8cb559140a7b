"""The devices that a training runs on: one, several of this machine, a TPU, or several machines."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from towers.errors import InputError
from training.config import Strategy

_CLUSTER = (
    '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
)


@contextmanager
def training_devices(
    output: Path, strategy: Strategy = "auto", *, deterministic: bool = False
) -> Iterator[Path]:
    """Trains on the devices of a strategy what is trained inside.

    Of several workers all do the same, each with its part of every batch, and one of them, the
    chief, writes to the output folder. The others write to a temporary copy of it, so that all
    take up an interrupted run at the same place.

    Args:
        output: the run folder; several workers must share it.
        strategy: see `training.config.Strategy`. With ``multi-worker``, to be entered ahead of any
            TensorFlow operation.
        deterministic: use operations that give the same bits in every run, for the rest of the
            process; slower on a GPU.

    Yields:
        The folder that this process writes to.

    Raises:
        InputError: there are no such devices, or workers find different things in `output`.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    devices = make_strategy(strategy)
    with devices.scope():
        if strategy == "multi-worker":
            with _own_folder(devices, output) as folder:
                yield folder
        else:
            yield output


def make_strategy(name: Strategy) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy of a name.

    Raises:
        InputError: there are no such devices.
    """
    if name == "multi-worker":
        return _multi_worker()
    if name == "tpu":
        return _tpu()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if name == "auto" and (kind == "CPU" or len(devices) < 2):
        return tf.distribute.get_strategy()
    if len(devices) < 2:
        raise InputError(
            f"strategy mirrored needs several devices, and TensorFlow sees one {kind}: "
            "leave --strategy out"
        )
    return tf.distribute.MirroredStrategy(devices)


def _multi_worker() -> tf.distribute.Strategy:
    where = f"strategy multi-worker needs TF_CONFIG in the environment of every worker: {_CLUSTER}"
    if "TF_CONFIG" not in os.environ:
        raise InputError(where)
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        cluster = {name: list(hosts) for name, hosts in config["cluster"].items()}
        kind, index = config["task"]["type"], int(config["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}; its value cannot be read: {error!r}") from error
    if kind not in ("chief", "worker") or index not in range(len(cluster.get(kind, []))):
        raise InputError(f"{where}; its value has no {kind} {index} among those of the cluster")
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu() -> tf.distribute.Strategy:
    try:
        name = os.environ.get("TPU_NAME", "local")  # local: that of this machine
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name)
    except Exception as error:  # many types, after what was looked for
        raise InputError(
            "strategy tpu needs a TPU and a TensorFlow that was built for it; none was found: "
            f"{str(error).partition('. ')[0]}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


@contextmanager
def _own_folder(strategy: tf.distribute.Strategy, output: Path) -> Iterator[Path]:
    """The output folder for the chief, a temporary copy of it for the others."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = output
        if not strategy.extended.should_checkpoint:
            folder = Path(scratch) / "run"
            if output.is_dir():
                shutil.copytree(output, folder)
            elif output.exists():
                shutil.copy(output, folder)
        # Also keeps the chief from writing before the others have their copy.
        if len(set(_told_by_all(strategy, _fingerprint(folder)))) > 1:
            raise InputError(
                f"the workers find different things in {output}: name a folder that they share, or "
                "one that none of them has"
            )
        yield folder
        # A cluster ends with its chief, so it waits for the others.
        _told_by_all(strategy, 0)


def _told_by_all(strategy: tf.distribute.Strategy, number: int) -> list[int]:
    """A number of each worker, once all have told it."""
    value = strategy.experimental_distribute_values_from_function(
        lambda _: tf.constant([number], tf.int64)
    )
    return strategy.gather(value, axis=0).numpy().tolist()


def _fingerprint(folder: Path) -> int:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in files]
    return zlib.crc32("\n".join([str(folder.exists()), *sizes]).encode())
