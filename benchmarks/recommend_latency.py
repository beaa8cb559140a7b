"""A recommendation over gRPC: latency for users with 20 past items, and nothing asked or written.

Fits a recommender to the office histories, exports it with the exact index, starts `towers serve`
as a process of its own and asks it for one user at a time. The text encoder has no part in it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from load import our_server
from reporting import arguments, report
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.export import export_retriever
from towers import Retriever
from towers.encoding import fast_dtype
from towers.item_text import ItemTemplate
from training.catalog import Catalog, render_items
from training.histories import Histories
from training.recommendation.fit import fit_recommender

_WARM_UP = 100  # requests that do not count


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--past", type=int, default=20, help="items of each history")
    options = parser.parse_args()
    catalog = Catalog.read(options.data / "office" / "catalog.jsonl.gz")
    histories = Histories.read(options.data / "office" / "train_sequences.jsonl.gz", catalog)
    ids = catalog.item_ids.tolist()
    retriever = Retriever.from_preset()
    texts = render_items(ItemTemplate.for_columns(["title"]), catalog)
    vectors = retriever.encode_items(texts, dtype=fast_dtype())
    fitted = fit_recommender(histories.sequences(), ids, texts, vectors, times=histories.times())
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "office"
        export_retriever(
            retriever,
            ids,
            texts,
            base,
            index="exact",
            item_embeddings=vectors,
            recommender=fitted.recommender,
        )
        seconds = _ask(base, ids, options.past, options.requests)
    milliseconds = np.array(seconds) * 1000
    row = {"items": len(ids), "past items": options.past}
    row |= {f"p{p}, ms": round(float(np.percentile(milliseconds, p)), 2) for p in (50, 90, 99)}
    report("recommend_latency", "One user at a time over gRPC", [row], requests=options.requests)


def _ask(base: Path, ids: list[str], past: int, count: int) -> list[float]:
    """Seconds of each request, random histories in turn."""
    rng = np.random.default_rng(0)
    seconds = []
    with (
        our_server(base) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for _ in range(_WARM_UP + count):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = base.name
            request.model_spec.signature_name = "recommend"
            history = [ids[row] for row in rng.choice(len(ids), past, replace=False)]
            request.inputs["history"].CopyFrom(tf.make_tensor_proto([history]))
            request.inputs["query"].CopyFrom(tf.make_tensor_proto([""]))
            start = time.perf_counter()
            answer = stub.Predict(request, timeout=30)
            seconds.append(time.perf_counter() - start)
            assert answer.outputs["item_ids"].string_val[0]
    return seconds[_WARM_UP:]


if __name__ == "__main__":
    main()
