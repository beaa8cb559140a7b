"""Keras on JAX, on a machine where TensorFlow cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

from towers import Retriever, TextSettings, Tokenizer

FIT = """
import sys

class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_text", "tf_keras"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, NoTensorFlow())
import keras, numpy as np
from towers import ArrayTokenizer, TextEncoder, TwoTower

assert keras.backend.backend() == "jax"
preset, file, weights = sys.argv[1:]
tokenizer = ArrayTokenizer.from_preset(preset)
model = TwoTower(TextEncoder.from_preset(preset, projection_dim=8), learn_temperature=True)
titles = ["electric kettle", "travel mug", "garden rake", "garden hose", "cat post", "red mug"]
queries = ["boils water", "keeps coffee hot", "steel tines", "20 m", "saves the sofa", "350 ml"]
x = {
    "query": tokenizer(queries, 16, pad_to=16),
    "item": tokenizer(titles, 16, pad_to=16),
    "item_ids": np.arange(6),
    "positive_ids": np.arange(6)[:, None],
}
model.compile(optimizer=keras.optimizers.Adam(1e-2))
losses = model.fit(x, batch_size=6, epochs=10, verbose=0).history["loss"]
assert losses[-1] < 0.5 * losses[0], losses
model.save(file)
np.savez(weights, *model.get_weights())
assert "tensorflow" not in sys.modules
print("trained", losses[0], losses[-1])
"""


def test_training_without_tensorflow(tiny_preset: str, tmp_path: Path) -> None:
    file, weights = tmp_path / "towers.keras", tmp_path / "weights.npz"
    result = subprocess.run(
        [sys.executable, "-c", FIT, tiny_preset, str(file), str(weights)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("trained")
    # What was trained there is a retriever here, under TensorFlow.
    model = keras.saving.load_model(file, compile=False)
    with np.load(weights) as there:
        for name, weight in zip(there.files, model.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, there[name])
    retriever = Retriever(
        model, Tokenizer.from_preset(tiny_preset), TextSettings("{title}", 16, 16)
    )
    vectors = retriever.encode_items(["red mug", "garden rake"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
