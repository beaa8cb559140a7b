"""Keras on JAX, on a machine where TensorFlow cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
preset, file = sys.argv[1:]
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
again = keras.saving.load_model(file)
for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)
assert "tensorflow" not in sys.modules
print("trained", losses[0], losses[-1])
"""


def test_training_without_tensorflow(tiny_preset: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FIT, tiny_preset, str(tmp_path / "towers.keras")],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("trained")
