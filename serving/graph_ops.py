"""The ops that a SavedModel calls, and the servers that have them.

TensorFlow Serving's stock binary links the kernels of TensorFlow and of TensorFlow Text (its
`model_servers/BUILD`, SUPPORTED_TENSORFLOW_OPS), and no other library's that is of use here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serving.loading import GRAPH_FILE
from serving.manifest import SCANN_SERVER, STOCK_SERVER

_SCANN = "Scann>"


def graph_ops(version: str | Path) -> set[str]:
    """Names of all ops in a version's graph and its functions."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((Path(version) / GRAPH_FILE).read_bytes())
    ops: set[str] = set()
    functions: set[str] = set()
    for meta_graph in model.meta_graphs:
        graph = meta_graph.graph_def
        ops.update(node.op for node in graph.node)
        for function in graph.library.function:
            functions.add(function.signature.name)
            ops.update(node.op for node in function.node_def)
    return ops - functions  # a function is called as if it were an op


def foreign_ops(version: str | Path) -> set[str]:
    """Ops of a version that a stock TensorFlow Serving does not have."""
    import tensorflow as tf

    others = {
        op for op in graph_ops(version) if not op.startswith("_") and not hasattr(tf.raw_ops, op)
    }
    wrappers = _text_wrappers()
    return {op for op in others if op.replace(">", "_") not in wrappers}  # a wrapper has no ">"


def server_for(foreign: set[str]) -> str:
    """Which server can load a version with such foreign ops, in words."""
    if not foreign:
        return STOCK_SERVER
    if all(op.startswith(_SCANN) for op in foreign):
        return SCANN_SERVER
    return f"a server with the ops {', '.join(sorted(foreign))}"


def _text_wrappers() -> set[str]:
    """Names of TensorFlow Text's Python wrappers of its ops."""
    import tensorflow_text  # noqa: F401  loads them

    modules = [module for name, module in sys.modules.items() if name.startswith("tensorflow_text")]
    wrappers = [
        value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("gen_")
    ]
    return {name for wrapper in wrappers for name in vars(wrapper) if name[:1].isupper()}
