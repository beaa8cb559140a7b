"""Prometheus metrics, under the names that TF Serving gives its own.

TF Serving's counters do not end in `_total`, as the Prometheus client has it; so the page is put
right before it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.server.models import Models
from serving.server.signatures import Observer

DEFAULT_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain"

_MICROSECONDS = [10 * 1.8**power for power in range(33)]  # TF Serving's buckets, to 20 minutes
_SECONDS = [1e-4 * 2**power for power in range(16)]  # 0.1 ms to 3.3 s
_SUFFIX = re.compile(rb"^((?:# (?:HELP|TYPE) )?:tensorflow:[a-z_:]+)_total\b", re.MULTILINE)
_CREATED = re.compile(rb"^(?:# (?:HELP|TYPE) )?\S+_created\b.*\n", re.MULTILINE)


class Metrics:
    """What a server counts and measures. Safe to use from any thread."""

    def __init__(self) -> None:
        """Makes metrics that start at zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            ":tensorflow:serving:request_count",
            "The total number of requests.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            ["model_name", "API", "entrypoint"],
            buckets=_MICROSECONDS,
            registry=self._registry,
        )
        self._runtime = Histogram(
            ":tensorflow:serving:runtime_latency",
            "Distribution of wall time (in microseconds) for Tensorflow runtime.",
            ["model_name", "API", "runtime"],
            buckets=_MICROSECONDS,
            registry=self._registry,
        )
        self._empty = Counter(
            "towers_empty_results",
            "Queries for which not one item was found.",
            ["model_name"],
            registry=self._registry,
        )
        self._stages = Histogram(
            "towers_stage_seconds",
            "Wall time of the stages of a search, of one search every few seconds.",
            ["model_name", "stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def watch(self, models: Models) -> None:
        """Adds the age of what the models serve."""
        self._registry.register(_Ages(models))

    def request(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """Counts a request that was answered, or refused.

        Args:
          model: The model's name.
          api: The call: Predict, Classify, Regress or MultiInference; predict, ... over REST.
          entrypoint: GRPC or REST.
          status: The name of the canonical code; the time taken counts where it is OK.
          seconds: How long it took.
        """
        self._requests.labels(model, status).inc()
        if status == "OK":
            self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def observer(self, model: str) -> Observer:
        """Returns what is to be told of the runs of a model's graphs."""
        return _ModelMetrics(model, self._runtime, self._empty, self._stages)

    def page(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return _SUFFIX.sub(rb"\1", _CREATED.sub(b"", generate_latest(self._registry)))


class _ModelMetrics:
    """The part of the metrics that the graphs of one model fill in."""

    def __init__(self, model: str, runtime: Histogram, empty: Counter, stages: Histogram) -> None:
        self._model = model
        self._runtime = runtime
        self._empty = empty.labels(model)
        self._stages = stages

    def ran(self, api: str, seconds: float, outputs: Mapping[str, np.ndarray]) -> None:
        """Counts a run, and the queries for which nothing was found."""
        # TF Serving calls it TF1 whatever made the SavedModel, unless it runs TFRT.
        self._runtime.labels(self._model, api, "TF1").observe(seconds * 1e6)
        item_ids = outputs.get("item_ids")
        if item_ids is not None and item_ids.ndim == 2 and item_ids.shape[1]:
            self._empty.inc(sum(not item_id for item_id in item_ids[:, 0]))

    def staged(self, seconds: Mapping[str, float]) -> None:
        """Counts what the stages of a search took."""
        for stage, taken in seconds.items():
            self._stages.labels(self._model, stage).observe(taken)


class _Ages(Collector):
    """When each version that serves was exported, read at every scrape."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yields the gauge."""
        gauge = GaugeMetricFamily(
            "towers_export_timestamp_seconds",
            "When the version that serves was exported: time() less this is the index's age.",
            labels=["model_name", "version"],
        )
        for model, version, exported in self._models.export_times():
            gauge.add_metric([model, str(version)], exported)
        yield gauge
