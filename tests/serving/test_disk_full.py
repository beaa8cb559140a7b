"""An export for which there is no room: nothing of it is seen, and the next one goes through.

A limit on the size of files stands in for a full disk: both fail a write half-way.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.client import RetrievalClient
from serving.export import export_retriever
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    # Python ignores the signal that comes with it, so that writes fail with EFBIG.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_export_without_room_leaves_nothing(tmp_path, tiny_retriever, tiny_catalog):
    texts = tiny_retriever.template.render(tiny_catalog)
    base = tmp_path / "shop"

    def export(prefix: str) -> None:
        ids = [f"{prefix}-{item_id}" for item_id in tiny_catalog["item_id"]]
        export_retriever(tiny_retriever, ids, texts, base, k=1)

    export("first")
    with (
        ModelServer(base, loading=LoadOptions(poll_seconds=0.05)) as server,
        RetrievalClient(f"127.0.0.1:{server.grpc_port}", model="shop") as client,
    ):
        with files_no_larger_than(10_000), pytest.raises(Exception, match="too large"):
            export("second")
        assert os.listdir(base) == ["1"]
        assert client.search([""])[0][0].item_id.startswith("first-")
        assert [status.version for status in client.status()] == [1]
    export("third")
    assert sorted(os.listdir(base)) == ["1", "2"]
