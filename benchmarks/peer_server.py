"""The search server a user would build: sentence-transformers, faiss or hnswlib, FastAPI, uvicorn.

Started by `serving_stack.py`. POST /search {"query": "...", "k": 10} gives item ids and scores.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

_Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Query(BaseModel):
    """A request."""

    query: str
    k: int = 10


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("encoder", help="folder of the checkpoint")
    parser.add_argument("vectors", type=Path, help=".npy file of the items' vectors, [N, d]")
    parser.add_argument("item_ids", type=Path, help="text file, one id a line")
    parser.add_argument("index", choices=["faiss", "hnswlib"])
    options = parser.parse_args()
    encoder = SentenceTransformer(options.encoder, device="cpu")
    encoder.max_seq_length = 32
    item_ids = options.item_ids.read_text("utf-8").splitlines()
    search = _build(options.index, np.load(options.vectors))
    app = FastAPI()

    # Not async: FastAPI runs it in a pool of threads, and the loop stays free.
    @app.post("/search")
    def answer(request: Query) -> dict[str, list[str] | list[float]]:
        vector = encoder.encode(
            [request.query], normalize_embeddings=True, show_progress_bar=False
        )  # [1, d]
        scores, rows = search(vector, request.k)
        return {
            "item_ids": [item_ids[row] for row in rows[0]],
            "scores": scores[0].tolist(),
        }

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        print(f"HTTP on 127.0.0.1:{listener.getsockname()[1]}")
        encoder.encode(["warm-up"], show_progress_bar=False)
        print("Ready", flush=True)
        # What comes before uvicorn accepts, waits in the socket's queue.
        listener.listen(128)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])


def _build(kind: str, vectors: np.ndarray) -> _Search:
    """Makes a function from query vectors, `[N, d]`, and k to scores and rows, `[N, k]`."""
    vectors = vectors.astype(np.float32)
    width = vectors.shape[1]
    if kind == "hnswlib":
        import hnswlib

        graph = hnswlib.Index("ip", width)
        graph.init_index(len(vectors), M=32, ef_construction=200)
        graph.add_items(vectors)
        graph.set_ef(64)
        graph.set_num_threads(1)

        def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            rows, distances = graph.knn_query(queries, k)
            return 1 - distances, rows

        return search
    import faiss

    index = faiss.IndexFlatIP(width)
    index.add(vectors)
    return index.search


if __name__ == "__main__":
    main()
