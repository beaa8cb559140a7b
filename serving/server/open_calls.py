"""The gRPC calls that are open: none waits for ever, and a server stops once they are answered."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

_DRAINING_SECONDS = 1.0  # for a message that is under way while the server stops

_Behavior = Callable[..., Any]


class OpenCalls(grpc.ServerInterceptor):
    """Ends calls that let the server wait for a message, and tells when all calls are answered.

    grpc-python gives a call a thread to wait for its message with. So there have to be more threads
    than requests are worked on at once, and none may wait for ever. Safe to use from any thread.
    """

    def __init__(self, message_seconds: float) -> None:
        """Makes an interceptor.

        Args:
          message_seconds: How long a call may let the server wait for a message.
        """
        self._message_seconds = message_seconds
        self._changed = threading.Condition()
        # context -> since when it is waited for; the longest first
        self._waiting: dict[grpc.ServicerContext, float] = {}
        self._unanswered = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="open-calls", daemon=True)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Has the messages of a call awaited here."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        # The handler of a stream is told of a call before its message has come.
        codecs = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._one(handler.unary_unary), *codecs)
        if handler.unary_stream:
            return grpc.stream_stream_rpc_method_handler(self._first(handler.unary_stream), *codecs)
        return grpc.stream_stream_rpc_method_handler(self._each(handler.stream_stream), *codecs)

    def start(self) -> None:
        """Begins to end calls."""
        self._thread.start()

    def drain(self, seconds: float) -> None:
        """Waits until each call has its answer; streams, which have no end, are not waited for.

        Args:
          seconds: The longest to wait.
        """
        self._message_seconds = min(self._message_seconds, _DRAINING_SECONDS)
        with self._changed:
            self._changed.wait_for(lambda: not self._unanswered, seconds)

    def stop(self) -> None:
        """Ends no more calls."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _one(self, behavior: _Behavior) -> _Behavior:
        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._changed:
                self._unanswered += 1
            if not context.add_callback(self._answered):  # it has ended
                self._answered()
            return behavior(self._message(requests, context), context)

        return answer

    def _first(self, behavior: _Behavior) -> _Behavior:
        # With its attributes: they say that it needs no thread to go on.
        @functools.wraps(behavior)
        def answer(requests: Iterator[Any], context: grpc.ServicerContext, *send: Any) -> Any:
            return behavior(self._message(requests, context), context, *send)

        return answer

    def _each(self, behavior: _Behavior) -> _Behavior:
        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return behavior(self._messages(requests, context), context)

        return answer

    def _message(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        for request in self._messages(requests, context):
            return request
        return context.abort(  # raises
            grpc.StatusCode.UNIMPLEMENTED, "the call requires exactly one request message."
        )

    def _messages(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        while True:
            with self._awaited(context):
                try:
                    request = next(requests)
                except StopIteration:
                    return
            yield request

    @contextmanager
    def _awaited(self, context: grpc.ServicerContext) -> Iterator[None]:
        with self._changed:
            self._waiting[context] = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._waiting.pop(context, None)

    def _answered(self) -> None:
        with self._changed:
            self._unanswered -= 1
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._stopping.wait(min(self._message_seconds, _DRAINING_SECONDS) / 4):
            with self._changed:
                latest = time.monotonic() - self._message_seconds
                late = [context for context, since in self._waiting.items() if since < latest]
            for context in late:
                context.cancel()
