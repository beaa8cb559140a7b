"""A graph that is made once: counted, and compared with plain calls."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from towers.traced import traced_once

NUMBERS = tf.TensorSpec([None], tf.float32)


class Squares(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = tf.Variable(3.0)
        self.traces: list[str] = []
        self.square = traced_once(self._square, NUMBERS)
        self.unused = traced_once(self._unused, NUMBERS)

    def _square(self, x: tf.Tensor) -> tf.Tensor:
        self.traces.append("square")
        return self.factor * x * x

    def _unused(self, x: tf.Tensor) -> tf.Tensor:
        self.traces.append("unused")
        return x

    @tf.function(input_signature=[NUMBERS])
    def once(self, x: tf.Tensor) -> tf.Tensor:
        return self.square(x)

    @tf.function(input_signature=[NUMBERS])
    def twice(self, x: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda row: self.square(row[None])[0], self.square(x))


def test_many_graphs_have_one_of_it_and_what_is_not_called_has_none(tmp_path: Path) -> None:
    squares = Squares()
    tf.saved_model.save(squares, str(tmp_path / "model"))
    assert list(squares.traces) == ["square"]
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    for module in (squares, loaded):
        assert module.once(tf.constant([1.0, 2.0])).numpy().tolist() == [3, 12]
        assert module.twice(tf.constant([1.0, 2.0])).numpy().tolist() == [27, 432]
    squares.factor.assign(2.0)
    assert squares.once(tf.constant([2.0])).numpy().tolist() == [8]
