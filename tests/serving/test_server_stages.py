"""The times of the stages of a search."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import requests
import tensorflow as tf
from prometheus_client.parser import text_string_to_metric_families

from serving.client import RetrievalClient
from serving.export import export_retriever
from serving.loading import load_export
from serving.server import stages
from serving.server.server import ModelServer


class Clock:
    """A time that passes when a step is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stages, "time", self)

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def step(self, name: str, seconds: float):
        def call(query=None, **_):
            self.now += seconds
            return {"name": name}

        return call


def test_stages_are_the_differences_of_the_steps_every_few_seconds(monkeypatch):
    clock = Clock(monkeypatch)
    encode = clock.step("encode", 0.25)
    loaded = SimpleNamespace(
        tokenize_query=clock.step("tokenise", 0.0625), signatures={"encode_query": encode}
    )
    search = stages.StagedSearch(loaded, clock.step("search", 1.0))
    seen: list[dict[str, float]] = []
    one, many = tf.constant(["mug"]), tf.constant(["mug"] * 33)
    assert search(query=one) == {"name": "search"}  # warm-up, which nobody is told of
    search.observer = SimpleNamespace(staged=seen.append)
    for _ in range(3):
        search(query=one)
        search(query=many)
    assert seen == [{"tokenise": 0.0625, "encode": 0.1875, "search": 0.75}]
    clock.now += 5
    search(query=many)
    assert len(seen) == 1
    loaded.signatures["encode_query"] = None  # was taken at the start
    search(query=one)
    assert len(seen) == 2


def test_the_stages_of_an_export_are_in_the_metrics(tmp_path, tiny_retriever, tiny_catalog):
    texts = tiny_retriever.template.render(tiny_catalog)
    result = export_retriever(tiny_retriever, tiny_catalog["item_id"], texts, tmp_path / "shop")
    tokens = load_export(result.path).tokenize_query(tf.constant(["red mug", "rake"]))
    expected = tiny_retriever.tokenizer(
        tf.constant(["red mug", "rake"]), tiny_retriever.text.query_max_length
    )["token_ids"]
    np.testing.assert_array_equal(tokens, expected)
    with ModelServer(tmp_path / "shop") as server:
        with RetrievalClient(f"127.0.0.1:{server.grpc_port}", model="shop") as client:
            answers = [client.search(["red mug"]) for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]  # in steps, and in one
        page = requests.get(
            f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics", timeout=30
        ).text
    found = {
        sample.labels["stage"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "towers_stage_seconds_count"
    }
    assert found == {"tokenise": 1, "encode": 1, "search": 1}
