"""Ops of a graph against TensorFlow's own registry, in a process without our libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_text

from serving.export import export_retriever
from serving.graph_ops import foreign_ops, graph_ops, server_for
from serving.manifest import SCANN_SERVER, STOCK_SERVER
from towers import InputError, Retriever


class _Model(tf.Module):
    """Words of a text, counted in a loop inside a function inside a branch."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def count(self, texts):
        @tf.function
        def words(text):
            return tensorflow_text.WhitespaceTokenizer().tokenize(text).row_lengths()

        return tf.cond(
            tf.shape(texts)[0] > 1,
            lambda: tf.map_fn(lambda text: words(text[None])[0], texts, tf.int64),
            lambda: words(texts),
        )


def test_functions_are_looked_into(tmp_path: Path, core_ops: set[str]) -> None:
    model = _Model()
    tf.saved_model.save(model, str(tmp_path), signatures={"count": model.count})
    ops = graph_ops(tmp_path)
    assert ops & {"While", "StatelessWhile"}
    assert ops & {"If", "StatelessIf"}
    text_ops = {"TFText>WhitespaceTokenizeWithOffsetsV2"}
    assert text_ops <= ops
    assert ops - core_ops == text_ops
    assert foreign_ops(tmp_path) == set()


@pytest.mark.parametrize("index", ["exact", "scann", "partitioned"])
def test_which_server_can_load_an_export(
    index: str, tiny_retriever: Retriever, tmp_path: Path, core_ops: set[str]
) -> None:
    result = export_retriever(
        tiny_retriever,
        ["a", "b"],
        ["Red mug", "Garden rake"],
        tmp_path / "shop",
        index=index,
        columns={"price": [1.0, 2.0], "brand": ["Purr", None]},
    )
    foreign = foreign_ops(result.path)
    text_ops = {"FastBertNormalize", "FastWordpieceTokenizeWithOffsets", "NormalizeUTF8"}
    assert graph_ops(result.path) - core_ops == foreign | text_ops
    scann = {"Scann>ScannSearchBatched", "Scann>TensorsToScann"}
    assert foreign == (scann if index == "scann" else set())
    assert result.manifest.server == (SCANN_SERVER if index == "scann" else STOCK_SERVER)
    assert result.manifest.foreign_ops == sorted(foreign)


def test_an_export_for_a_stock_server_has_no_foreign_op(
    tiny_retriever: Retriever, tmp_path: Path
) -> None:
    base = tmp_path / "shop"
    with pytest.raises(InputError, match=r"Scann>ScannSearchBatched.*exact or partitioned"):
        export_retriever(tiny_retriever, ["a"], ["mug"], base, index="scann", stock_server=True)
    assert list(base.iterdir()) == []
    made = export_retriever(tiny_retriever, ["a"], ["mug"], base, stock_server=True)
    assert made.manifest.server == STOCK_SERVER


def test_other_ops_are_named() -> None:
    assert server_for({"Other>Op", "Scann>X"}) == "a server with the ops Other>Op, Scann>X"
