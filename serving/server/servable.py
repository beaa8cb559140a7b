"""One version of a model, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from serving.loading import GRAPH_FILE, load_export
from serving.manifest import MANIFEST_FILE
from serving.server.batching import BatchingOptions
from serving.server.signatures import Observer, Signature
from serving.server.stages import StagedSearch, can_be_staged
from serving.server.status import StatusError

DEFAULT_SIGNATURE = "serving_default"
_SERVE_TAG = "serve"


class Servable:
    """A loaded version: its signatures, ready to run, and their definitions.

    Attributes:
      version: The version's number.
      signature_defs: The SignatureDefs as they stand in the SavedModel.
      exported: When it was exported, in seconds since 1970: the age of its graph's file.
    """

    def __init__(
        self,
        version: int,
        loaded: Any,
        signature_defs: Mapping[str, meta_graph_pb2.SignatureDef],
        exported: float,
    ) -> None:
        """Makes a servable from what `tf.saved_model.load` returned."""
        self.version = version
        self.exported = exported
        self.signature_defs = dict(signature_defs)
        # Restored functions hold their variables, tables and assets only through this object.
        self._loaded = loaded
        self._searches = {
            name: StagedSearch(loaded, function)
            for name, function in loaded.signatures.items()
            if can_be_staged(loaded, name)
        }
        self._signatures = {
            name: Signature(name, signature_defs[name], self._searches.get(name, function))
            for name, function in loaded.signatures.items()
        }

    @classmethod
    def load(cls, path: Path, version: int, batching: BatchingOptions | None = None) -> Servable:
        """Loads a version folder.

        Args:
          path: The folder.
          version: The version's number.
          batching: How requests for one signature are batched; not at all when None.

        Raises:
          InputError: The folder holds no SavedModel, or needs a library that is missing.
          StatusError: The SavedModel has no graph to serve.
          Exception: Whatever TensorFlow raises for a SavedModel it cannot restore.
        """
        loaded = load_export(path)
        exported = (path / GRAPH_FILE).stat().st_mtime
        servable = cls(version, loaded, _read_signature_defs(path), exported)
        if batching and (batching.every_model or (path / MANIFEST_FILE).is_file()):
            for signature in servable._signatures.values():
                signature.batch(batching)
        return servable

    def observe(self, observer: Observer) -> None:
        """Has each run of a signature told, and what some searches took."""
        for signature in self._signatures.values():
            signature.observer = observer
        for search in self._searches.values():
            search.observer = observer

    def signature(self, name: str) -> Signature:
        """Returns a signature by its key; the empty name means `serving_default`.

        Raises:
          StatusError: FAILED_PRECONDITION, where there is none of that name.
        """
        name = name or DEFAULT_SIGNATURE
        try:
            return self._signatures[name]
        except KeyError:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            ) from None


def _read_signature_defs(path: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    saved_model = saved_model_pb2.SavedModel.FromString((path / GRAPH_FILE).read_bytes())
    for meta_graph in saved_model.meta_graphs:
        if _SERVE_TAG in meta_graph.meta_info_def.tags:
            # A copy each: a reference into the message would keep the whole graph in memory.
            definitions = {}
            for name, definition in meta_graph.signature_def.items():
                definitions[name] = meta_graph_pb2.SignatureDef()
                definitions[name].CopyFrom(definition)
            return definitions
    raise StatusError(
        grpc.StatusCode.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {_SERVE_TAG} }} in {path}.",
    )
