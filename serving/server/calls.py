"""What happens around every call of the API: access, metrics and the log."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from serving.server.access import Access
from serving.server.metrics import Metrics
from serving.server.status import StatusError

TOO_MANY = "Too many requests are waiting to be answered; try again later."

_log = logging.getLogger("towers.requests")
_MAX_TEXT = 2000
_COUNTED = ("Predict", "Classify", "Regress", "MultiInference")  # as in TF Serving


@dataclass(frozen=True)
class Caller:
    """Who makes a call.

    Attributes:
      address: The client's address, without the port.
      authorization: What was sent as such.
      entrypoint: GRPC or REST.
    """

    address: str
    authorization: str | None
    entrypoint: str


class WorkLimit:
    """Lets some calls be worked on at once and some wait for that. Safe to use from any thread."""

    def __init__(self, workers: int, max_pending: int) -> None:
        """Makes a limit.

        Args:
          workers: How many calls are worked on at once.
          max_pending: How many more may wait; others are refused.
        """
        self._workers = threading.Semaphore(workers)
        self._places = threading.Semaphore(workers + max_pending)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the turn of a call, and frames its work.

        Raises:
          StatusError: RESOURCE_EXHAUSTED, where too many wait.
        """
        if not self._places.acquire(blocking=False):
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
        try:
            with self._workers:
                yield
        finally:
            self._places.release()


class Calls:
    """Checks, times, counts and logs calls, whichever transport they came in by."""

    def __init__(
        self,
        access: Access,
        metrics: Metrics,
        is_model: Callable[[str], bool],
        *,
        log_requests: bool = False,
        log_query_text: bool = False,
    ) -> None:
        """Makes the frame of calls.

        Args:
          access: Who may call.
          metrics: Where calls are counted.
          is_model: Whether a name is a model's. Others are counted together: names that clients
            make up must not become metrics without end.
          log_requests: Whether each call is logged, as one JSON object.
          log_query_text: Whether what was asked is in it.
        """
        self._access = access
        self._metrics = metrics
        self._is_model = is_model
        self._log_requests = log_requests or log_query_text
        self._log_query_text = log_query_text

    @contextmanager
    def around(
        self, caller: Caller, model: str, api: str, text: Callable[[], str]
    ) -> Iterator[None]:
        """Frames one call.

        Args:
          caller: Who calls.
          model: The model that is named.
          api: The call's name, such as Predict.
          text: Gives what was asked, for the log.

        Raises:
          StatusError: UNAUTHENTICATED or RESOURCE_EXHAUSTED, where the caller is not let in.
        """
        started = time.perf_counter()
        status = "OK"
        try:
            self._access.check(caller.authorization, caller.address)
            yield
        except asyncio.CancelledError:  # the client has gone
            status = grpc.StatusCode.CANCELLED.name
            raise
        except Exception as error:
            status = StatusError.wrap(error).code.name
            raise
        finally:
            seconds = time.perf_counter() - started
            if api in _COUNTED:
                known = model if self._is_model(model) else ""
                # In TF Serving, too, it is the method in the URL over REST.
                label = api.lower() if caller.entrypoint == "REST" else api
                self._metrics.request(known, label, caller.entrypoint, status, seconds)
            if self._log_requests:
                record = {
                    "api": api,
                    "model": model,
                    "status": status,
                    "milliseconds": round(seconds * 1e3, 3),
                    "entrypoint": caller.entrypoint,
                    "client": caller.address,
                }
                if self._log_query_text:
                    record["text"] = text()[:_MAX_TEXT]
                _log.info(json.dumps(record, ensure_ascii=False))
