"""Replaying the warm-up requests that an export carries.

The first call of a restored function is slow (its graph is optimised then), so an export may hold
sample requests in `assets.extra/tf_serving_warmup_requests`. They are run before the version is
shown to clients, which makes them a last check, too: a version that cannot answer its own sample
requests does not go live.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.server.inference import run_classify, run_multi_inference, run_regress
from serving.server.predict import run_predict
from serving.server.servable import Servable
from serving.server.status import StatusError, invalid_argument
from serving.warmup import MAX_RECORDS, WARMUP_FILE

_log = logging.getLogger(__name__)


def warm_up(servable: Servable, path: Path) -> int:
    """Replays the warm-up records of the version folder `path`; it may have none.

    Returns:
      How many records were replayed.

    Raises:
      StatusError: A record cannot be read, or its request fails.
    """
    file = path / WARMUP_FILE
    if not file.is_file():
        return 0
    replayed = 0
    try:
        for number, record in enumerate(tf.data.TFRecordDataset(str(file)), start=1):
            if number > MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}"
                )
            replayed += _replay(servable, record.numpy(), file)
    except tf.errors.DataLossError as error:
        raise StatusError(
            grpc.StatusCode.DATA_LOSS,
            f"{error.message}. Please verify your warmup data is in TFRecord format.",
        ) from error
    return replayed


def _replay(servable: Servable, record: bytes, file: Path) -> bool:
    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid_argument(f"Failed to parse warmup record from {file}") from error
    kind = log.WhichOneof("log_type")
    if kind not in _RUNNERS:
        # Such a version still answers requests; refusing it would help nobody.
        _log.warning("%s: skipped a %s, which is not served", file, kind)
        return False
    _RUNNERS[kind](servable, getattr(log, kind).request)
    return True


_RUNNERS: dict[str | None, Callable[[Servable, Any], object]] = {
    "predict_log": run_predict,
    "classify_log": run_classify,
    "regress_log": run_regress,
    "multi_inference_log": run_multi_inference,
}
