"""Warm-up requests: what a server runs on a new version before it lets users at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000  # TensorFlow Serving refuses a file with more

_BATCH_SIZES = (1, 2, 8, 32)


def write_warmup(
    folder: str | Path,
    model_name: str,
    inputs: Mapping[str, Mapping[str, Sequence[str] | tf.Tensor]],
) -> int:
    """Writes a request for every signature and a few batch sizes, in TF Serving's format.

    Args:
        folder: the version's folder.
        model_name: name of the model.
        inputs: signature name to the values of each of its inputs, one at least, as many of all.

    Returns:
        The number of records.
    """
    path = Path(folder) / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    records = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, columns in inputs.items():
            for size in _BATCH_SIZES:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                for name, values in columns.items():
                    batch = np.resize(np.arange(len(values)), size)
                    drawn = tf.gather(tf.convert_to_tensor(values), batch)
                    proto = tf.make_tensor_proto(drawn.numpy(), drawn.dtype)
                    request.inputs[name].CopyFrom(proto)
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())
                records += 1
    return records
