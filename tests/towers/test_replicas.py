"""Training on several devices: loss and gradients are those of one device with the whole batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODEL = """
import json, os, sys
import numpy as np

def towers(**options):
    import keras, keras_hub
    from towers import TextEncoder, TwoTower
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32,
        max_sequence_length=8, dropout=0.0,
    )
    model = TwoTower(TextEncoder(backbone), **options)
    model.compile(optimizer=keras.optimizers.SGD(1.0))  # the step is the gradient
    return model

def tokens(rng, count):
    mask = (np.arange(8) < rng.integers(2, 9, (count, 1))).astype("int32")
    ids = rng.integers(1, 40, (count, 8)).astype("int32")
    return {"token_ids": ids * mask, "padding_mask": mask}

def batch(count):
    rng = np.random.default_rng(5)
    ids = rng.integers(0, count - 2, count).astype("int32")  # some stand there twice
    further = np.roll(ids, 3)
    x = {
        "query": tokens(rng, count),
        "item": tokens(rng, count),
        "negatives": tokens(rng, count),
        "item_ids": ids,
        "negative_ids": np.arange(count, 2 * count, dtype="int32"),
        "positive_ids": np.stack([ids, further], axis=1),
        "item_log_probability": np.log(rng.random(count) + 0.1).astype("float32"),
        "negative_log_probability": np.log(rng.random(count) + 0.1).astype("float32"),
    }
    return x, np.zeros(count, "int32"), (rng.random(count) + 0.5).astype("float32")

def step(model, data):
    import keras
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    x, y, weight = data
    history = model.fit(x, y, sample_weight=weight, batch_size=len(y), verbose=0, shuffle=False)
    after = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    gradient = [(b - a).ravel() for b, a in zip(before, after)]
    return history.history["loss"][0], np.concatenate(gradient)
"""

LOGICAL_DEVICES = (
    MODEL
    + """
import tensorflow as tf
devices, cases = int(sys.argv[1]), json.loads(sys.argv[2])
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * devices
)
strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
report = []
for count, options in cases:
    loss, gradient = step(towers(**options), batch(count))
    with strategy.scope():
        model = towers(**options)
    there, slope = step(model, batch(count))
    sizes = np.abs(gradient).max(), np.abs(slope - gradient).max()
    report.append([loss, there, *map(float, sizes)])
print(json.dumps(report))
"""
)

JAX_DEVICES = (
    MODEL
    + """
import jax, keras
assert len(jax.devices()) == int(sys.argv[1])
report = []
for count, options in json.loads(sys.argv[2]):
    keras.distribution.set_distribution(None)
    loss, gradient = step(towers(**options), batch(count))
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = towers(**options)
    there, slope = step(model, batch(count))
    assert len(model.trainable_weights[0].value.sharding.device_set) == len(jax.devices())
    sizes = np.abs(gradient).max(), np.abs(slope - gradient).max()
    report.append([loss, there, *map(float, sizes)])
print(json.dumps(report))
"""
)

# By hand, so that the workers have unequal parts; tests/training/test_devices.py has `fit`.
WORKER = (
    MODEL
    + """
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = towers()
rows = slice(0, 5) if strategy.cluster_resolver.task_id == 0 else slice(5, 8)
x, _, weight = tf.nest.map_structure(lambda value: value[rows], batch(8))

@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y_pred=model(x, training=True), sample_weight=weight)
    gradient = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    gradient = tf.concat([tf.reshape(part, [-1]) for part in gradient], 0)
    return tf.distribute.get_replica_context().all_reduce("sum", [gradient, loss])

gradient, loss = strategy.run(step)
np.save(sys.argv[1], np.append(gradient, loss))
"""
)


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("devices", "cases"),
    [
        (2, [(8, {"chunks": 2, "learn_temperature": True})]),
        (4, [(9, {})]),  # the devices have unequal parts
        pytest.param(
            2,
            [(8, {}), (8, {"chunks": 2}), (8, {"learn_temperature": True}), (8, {"fgm": 0.5})],
            marks=pytest.mark.slow,
        ),
        pytest.param(4, [(8, {})], marks=pytest.mark.slow),
    ],
)
def test_replicas_of_one_process(devices: int, cases: list[tuple[int, dict[str, float]]]) -> None:
    same_as_one_device(start(LOGICAL_DEVICES, str(devices), json.dumps(cases)), cases)


@pytest.mark.parametrize(
    "cases", [[(8, {"chunks": 2})], pytest.param([(8, {})], marks=pytest.mark.slow)]
)
def test_jax_devices(cases: list[tuple[int, dict[str, float]]]) -> None:
    process = start(
        JAX_DEVICES,
        "4",
        json.dumps(cases),
        KERAS_BACKEND="jax",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
    )
    same_as_one_device(process, cases)


def same_as_one_device(
    process: subprocess.Popen[str], cases: list[tuple[int, dict[str, float]]]
) -> None:
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    report = json.loads(output.splitlines()[-1])
    assert len(report) == len(cases)
    for case, (loss, there, size, difference) in zip(cases, report, strict=True):
        assert there == pytest.approx(loss, rel=1e-5), case
        assert size > 0.01, case
        assert difference < 1e-5 * size, case


def test_two_worker_processes(tmp_path: Path) -> None:
    import numpy as np

    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    workers = [
        start(
            WORKER,
            str(tmp_path / f"{index}.npy"),
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]
    here: dict[str, Any] = {}
    exec(MODEL, here)
    try:
        loss, gradient = here["step"](here["towers"](), here["batch"](8))
        for process in workers:
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in workers:
            process.kill()
    one = np.append(gradient, loss)
    size = np.abs(one[:-1]).max()
    assert size > 0.01
    for index in range(2):
        there = np.load(tmp_path / f"{index}.npy")
        np.testing.assert_allclose(there[:-1], one[:-1], atol=1e-5 * size, rtol=0)
        assert there[-1] == pytest.approx(one[-1], rel=1e-5)
