"""Exports killed at any moment, under the eyes of a server and of a client that never stops asking.

Each export is of the same items under ids of its own, so that an answer tells which export gave it.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client import RetrievalClient
from serving.loading import load_export
from serving.manifest import Manifest
from serving.warmup import WARMUP_FILE
from towers import Retriever

_REPOSITORY = Path(__file__).parents[2]
_QUERIES = ["hot coffee", "rake", ""]
_K = 3
_ROUNDS = 5
_KILLS = 10  # a round

# Imports once, then forks an exporter for each line it reads: the export's name, and after how many
# seconds to kill it, if at all. Prints how long the exporter lived and how it ended. An exporter
# that has ended is a zombie until it is waited for, so the kill cannot hit another process.
_EXPORTERS = """
import json, os, signal, sys, time, traceback
from serving.export import export_retriever
from towers import Retriever

run, base, texts, k = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])

def export(name):
    ids = [f"{name}/{row}" for row in range(len(texts))]
    export_retriever(Retriever.load(run), ids, texts, base, k=k, run_id=name)

for line in sys.stdin:
    name, *delay = line.split()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            export(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay:
        time.sleep(float(delay[0]))
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(time.monotonic() - began, status, flush=True)
"""


class Exporters:
    """Runs one export after the other, each in a process of its own."""

    def __init__(self, run: Path, base: Path, texts: list[str]) -> None:
        arguments = (str(run), str(base), json.dumps(texts), str(_K))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXPORTERS, *arguments],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def export(self, name: str, kill_after: float | None = None) -> tuple[float, int]:
        """Returns how many seconds the exporter lived, and its exit status or -signal."""
        print(name, "" if kill_after is None else kill_after, file=self._process.stdin, flush=True)
        seconds, status = self._process.stdout.readline().split()
        return float(seconds), int(status)

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0


class Oracle:
    """The right answer, whichever export gives it: items and scores by NumPy."""

    def __init__(self, retriever: Retriever, texts: list[str]) -> None:
        scores = retriever.encode_queries(_QUERIES) @ retriever.encode_items(texts).T
        self._rows = np.argsort(-scores, axis=1)[:, :_K]
        self._scores = np.take_along_axis(scores, self._rows, axis=1)

    def check(self, item_ids: list[list[str]], scores: Any) -> str:
        """Checks an answer; returns the name of the export whose items it holds."""
        (name,) = {item_id.partition("/")[0] for row in item_ids for item_id in row}
        assert item_ids == [[f"{name}/{row}" for row in rows] for rows in self._rows]
        np.testing.assert_allclose(scores, self._scores, atol=1e-4)
        return name


class Asker(threading.Thread):
    """Asks gRPC, REST and the status in turn until told to stop; keeps what went wrong."""

    def __init__(self, server: Any, oracle: Oracle) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._oracle = oracle
        self.done = threading.Event()
        self.turns = 0
        self.failures: list[BaseException] = []
        self.answered_by: dict[int, str] = {}  # version -> the export's name

    def run(self) -> None:
        with (
            grpc.insecure_channel(self._server.grpc) as channel,
            RetrievalClient(self._server.rest, model="shop", transport="rest", timeout=60) as rest,
        ):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not self.done.is_set():
                try:
                    self._ask_grpc(stub)
                    self._ask_rest(rest)
                    self._ask_status(rest)
                    self.turns += 1
                    self.done.wait(0.02)  # leaves the exporters some of a small machine
                except BaseException as error:
                    self.failures.append(error)

    def _ask_grpc(self, stub: Any) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "shop"
        request.inputs["query"].CopyFrom(tf.make_tensor_proto(_QUERIES))
        response = stub.Predict(request, timeout=60)
        ids = tf.make_ndarray(response.outputs["item_ids"])
        name = self._oracle.check(
            [[item_id.decode() for item_id in row] for row in ids],
            tf.make_ndarray(response.outputs["scores"]),
        )
        # A version never changes what it holds.
        assert self.answered_by.setdefault(response.model_spec.version.value, name) == name

    def _ask_rest(self, client: RetrievalClient) -> None:
        found = client.search(_QUERIES)
        self._oracle.check(
            [[hit.item_id for hit in hits] for hits in found],
            [[hit.score for hit in hits] for hits in found],
        )

    def _ask_status(self, client: RetrievalClient) -> None:
        statuses = client.status()
        assert "AVAILABLE" in {status.state for status in statuses}, statuses
        assert not any(status.error for status in statuses), statuses


def _numbered(base: Path) -> dict[int, Path]:
    return {int(path.name): path for path in base.iterdir() if path.name.isdigit()}


@pytest.mark.slow
def test_fifty_killed_exports_never_show_in_what_is_served(
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    start_server: Callable[..., Any],
    tmp_path: Path,
) -> None:
    run, base = tmp_path / "run", tmp_path / "shop"
    tiny_retriever.save(run)
    texts = tiny_retriever.template.render(tiny_catalog)
    oracle = Oracle(tiny_retriever, texts)
    exporters = Exporters(run, base, texts)
    assert exporters.export("first")[1] == 0
    asker = Asker(start_server(base, "--poll-seconds", 0.02), oracle)
    asker.start()

    moments = random.Random(7)
    killed = drafts_left = 0
    for turn in range(_ROUNDS):
        # A whole export, to measure how long one takes now, and for the server to swap in.
        seconds, status = exporters.export(f"whole-{turn}")
        assert status == 0
        for tenth in range(_KILLS):
            moment = (tenth + moments.random()) / _KILLS * 1.1 * seconds
            _, status = exporters.export(f"killed-{turn}-{tenth}", kill_after=moment)
            assert status in (0, -signal.SIGKILL)
            killed += status != 0
            drafts = [path for path in base.iterdir() if not path.name.isdigit()]
            assert len(drafts) <= 1  # what earlier kills left was removed by this export
            drafts_left += len(drafts)
    _, status = exporters.export("last")
    assert status == 0
    exporters.close()

    versions = _numbered(base)
    newest = max(versions)
    deadline = time.monotonic() + 120
    while newest not in asker.answered_by and time.monotonic() < deadline:
        time.sleep(0.1)
    asker.done.set()
    asker.join()
    assert not asker.failures, asker.failures[:3]
    assert asker.answered_by[newest] == "last"
    assert asker.turns > _ROUNDS * _KILLS
    assert killed >= 25, "the kills came too late to test anything"
    assert drafts_left >= 5, "no kill hit an export while it wrote"

    assert set(asker.answered_by) <= set(versions)
    for version, path in versions.items():
        answer = load_export(path).signatures["search"](query=tf.constant(_QUERIES))
        ids = [[item_id.decode() for item_id in row] for row in answer["item_ids"].numpy()]
        name = oracle.check(ids, answer["scores"].numpy())
        assert asker.answered_by.get(version, name) == name
        assert Manifest.read(path).run_id == name
        assert len(list(tf.data.TFRecordDataset(str(path / WARMUP_FILE)))) > 0
    assert all(path.name.isdigit() for path in base.iterdir())
