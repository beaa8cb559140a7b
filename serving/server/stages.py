"""How long the stages of a search take: tokenise, encode, search.

The three are one graph, and TensorFlow tells the time of the whole. So, every few seconds, a search
is done in steps: its queries are tokenised alone, then tokenised and encoded, then searched for.
The differences are the stages. The third step gives the answer that is sent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from serving.server.signatures import Function, Observer

_SECONDS_BETWEEN = 5.0  # a search in steps takes up to twice as long; one in 100 would show as p99
_MAX_QUERIES = 32  # in one search: more would take too long


class StagedSearch:
    """The function `search` of an export, some calls of it timed in steps.

    Attributes:
      observer: Where it is set, told what each stage took.
    """

    def __init__(self, loaded: Any, search: Function) -> None:
        """Makes a search.

        Args:
          loaded: The loaded export; see `can_be_staged`.
          search: Its function, which takes `query`, string `[N]`.
        """
        self.observer: Observer | None = None
        self._tokenize = loaded.tokenize_query
        self._encode = loaded.signatures["encode_query"]
        self._search = search
        self._next = float("-inf")

    def __call__(self, query: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Searches."""
        if time.monotonic() < self._next or len(query) > _MAX_QUERIES:
            return self._search(query=query)
        if self.observer is not None:  # until then it is warmed up, with its steps
            self._next = time.monotonic() + _SECONDS_BETWEEN
        start = time.perf_counter()
        self._tokenize(query)
        tokenized = time.perf_counter()
        self._encode(query=query)
        encoded = time.perf_counter()
        outputs = self._search(query=query)
        searched = time.perf_counter()
        if self.observer is not None:
            # A difference can be less than nothing where something else held up the shorter step.
            steps = (tokenized - start, encoded - tokenized, searched - encoded)
            self.observer.staged(
                {
                    "tokenise": steps[0],
                    "encode": max(0.0, steps[1] - steps[0]),
                    "search": max(0.0, steps[2] - steps[1]),
                }
            )
        return outputs


def can_be_staged(loaded: Any, signature: str) -> bool:
    """Whether this signature of a loaded SavedModel is a search that can be done in steps."""
    return (
        signature in ("serving_default", "search")
        and hasattr(loaded, "tokenize_query")
        and "encode_query" in loaded.signatures
    )
