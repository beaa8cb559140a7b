"""One signature of a loaded SavedModel: what it takes, what it gives, and how it is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.batching import Batcher, BatchingOptions
from serving.server.status import StatusError, invalid_argument
from serving.server.tensors import array_from_proto, dtype_name, shape_text

Function = Callable[..., Mapping[str, tf.Tensor]]
"""Takes a tensor for each input by name, returns a tensor for each output."""


class Observer(Protocol):
    """Is told what the graphs of a model do."""

    def ran(self, api: str, seconds: float, outputs: Mapping[str, np.ndarray]) -> None:
        """A request for `api` had its `outputs` computed, within so many seconds."""

    def staged(self, seconds: Mapping[str, float]) -> None:
        """A search took so many seconds in each of its stages."""


@dataclass(frozen=True)
class InputSpec:
    """What the graph expects of one input.

    Attributes:
      dtype: The element type.
      shape: The dimensions, None where any size will do; None as a whole where any rank will.
    """

    dtype: tf.DType
    shape: tuple[int | None, ...] | None

    def admits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can be fed."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(
                want is None or got == want for got, want in zip(shape, self.shape, strict=True)
            )
        )


class Signature:
    """A signature and the function that computes it.

    Attributes:
      name: The key it has in the SavedModel.
      inputs: What each input has to be.
      outputs: The names of the outputs.
      observer: Where it is set, told of each run; waiting for a batch is part of its time, as in
        TF Serving.

    Everything is checked before the graph runs: TensorFlow itself checks neither rank nor
    dimensions of what is fed to a restored function, and some ops abort the process when the
    rank is not the one they were traced with.
    """

    def __init__(
        self,
        name: str,
        definition: meta_graph_pb2.SignatureDef,
        function: Function,
    ) -> None:
        """Makes a signature.

        Args:
          name: The key it has in the SavedModel.
          definition: Its SignatureDef.
          function: What computes it.
        """
        self.name = name
        self.inputs = {name: _input_spec(info) for name, info in sorted(definition.inputs.items())}
        self.outputs = tuple(sorted(definition.outputs))
        self.observer: Observer | None = None
        self._function = function
        self._compute: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = self._run_graph
        self._is_by_row = _is_by_row(definition)
        self._feed_names = {name: info.name for name, info in definition.inputs.items()}
        self._defaults = {
            name: array_from_proto(proto, name) for name, proto in definition.defaults.items()
        }

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str] = (),
        api: str = "Predict",
    ) -> dict[str, np.ndarray]:
        """Computes the outputs.

        Args:
          inputs: An array for each input; strings are arrays of `bytes` objects.
          output_filter: The outputs wanted; all when empty.
          api: The call this is for, to be told to the observer.

        Raises:
          StatusError: INVALID_ARGUMENT where the inputs or the filter do not fit the signature;
            the op's own code where the graph fails.
        """
        wanted = self._select_outputs(output_filter)
        self._check_names(inputs)
        inputs = {**self._defaults, **inputs}
        for position, (name, spec) in enumerate(self.inputs.items()):
            self._check_tensor(position, name, spec, inputs[name])
        started = time.perf_counter()
        outputs = self._compute({name: inputs[name] for name in self.inputs})
        arrays = {name: outputs[name] for name in wanted}
        if self.observer is not None:
            self.observer.ran(api, time.perf_counter() - started, arrays)
        return arrays

    def batch(self, options: BatchingOptions) -> None:
        """Has requests that come at the same time share a run of the graph from now on.

        Only where the first dimension of each input and output is open, as that of a batch is.
        """
        if self._is_by_row:
            self._compute = Batcher(self._run_graph, options).run

    def _run_graph(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = {
            name: tf.constant(inputs[name], spec.dtype) for name, spec in self.inputs.items()
        }
        try:
            outputs = self._function(**tensors)
            return {name: _array(outputs[name]) for name in self.outputs}
        except tf.errors.OpError as error:
            raise StatusError.wrap(error) from error

    def _select_outputs(self, output_filter: Sequence[str]) -> Sequence[str]:
        seen: set[str] = set()
        for name in output_filter:
            if name not in self.outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {name} Outputs expected to be "
                    f"in the set {_braces(self.outputs)}."
                )
            if name in seen:
                raise invalid_argument(f"duplicate output tensor alias: {name}")
            seen.add(name)
        return output_filter or self.outputs

    def _check_names(self, inputs: Mapping[str, np.ndarray]) -> None:
        extra = inputs.keys() - self.inputs.keys()
        missing = self.inputs.keys() - inputs.keys() - self._defaults.keys()
        if len(inputs) != len(self.inputs) and (extra or missing):
            raise invalid_argument(
                f"input size does not match signature: {len(inputs)}!={len(self.inputs)} "
                f"len({_braces(inputs)}) != len({_braces(self.inputs)}). "
                f"Sent extra: {_braces(extra)}. Missing but required: {_braces(missing)}."
            )
        for name in sorted(missing):
            raise invalid_argument(
                f"Signature input alias: {name}(feed name: {self._feed_names[name]}) not found in "
                "request and no default value provided. Inputs expected to be in the request "
                f"{_braces(inputs)}, or default input alias set: {','.join(sorted(self._defaults))}"
            )
        if extra:
            raise invalid_argument(
                "Inputs contains invalid name. Used request inputs: "
                f"{','.join(sorted(inputs.keys() - extra))}, "
                f"request input: {','.join(sorted(inputs))}"
            )

    def _check_tensor(self, position: int, name: str, spec: InputSpec, array: np.ndarray) -> None:
        got = tf.dtypes.as_dtype(array.dtype)
        if got != spec.dtype:
            raise invalid_argument(
                f"Expects arg[{position}] to be {dtype_name(spec.dtype.as_datatype_enum)} but "
                f"{dtype_name(got.as_datatype_enum)} is provided: "
                f'input "{name}" of signature "{self.name}"'
            )
        if not spec.admits(array.shape):
            raise invalid_argument(
                f'Input "{name}" of signature "{self.name}" has shape {shape_text(array.shape)}, '
                f"but {shape_text(spec.shape or ())} is expected"
            )


def _input_spec(info: meta_graph_pb2.TensorInfo) -> InputSpec:
    dtype = tf.dtypes.as_dtype(info.dtype)
    if info.tensor_shape.unknown_rank:
        return InputSpec(dtype, None)
    sizes = (dim.size for dim in info.tensor_shape.dim)
    return InputSpec(dtype, tuple(None if size < 0 else size for size in sizes))


def _is_by_row(definition: meta_graph_pb2.SignatureDef) -> bool:
    """Whether inputs and outputs may all have one row for each element of a batch."""
    shapes = [
        info.tensor_shape for info in (*definition.inputs.values(), *definition.outputs.values())
    ]
    return bool(definition.inputs and definition.outputs) and all(
        not shape.unknown_rank and shape.dim and shape.dim[0].size < 0 for shape in shapes
    )


def _array(tensor: tf.Tensor) -> np.ndarray:
    # A scalar comes out of `.numpy()` as a bare value, and NumPy would make fixed-width strings
    # (which drop trailing zero bytes) of bytes.
    return np.asarray(tensor.numpy(), object if tensor.dtype == tf.string else None)


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
