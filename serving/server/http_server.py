"""The HTTP server under the REST API: aiohttp on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import grpc
from aiohttp import web

from serving.server.calls import TOO_MANY, Caller, Calls
from serving.server.rest import Answer, RestApi
from serving.server.rest_json import write_error
from serving.server.status import StatusError, invalid_argument

_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS  # whichever its header says

_log = logging.getLogger(__name__)


class HttpServer:
    """Reads requests on an event loop and has them answered by a pool of threads.

    The loop keeps slow clients and idle connections cheap; JSON and the graph stay off it.
    """

    def __init__(
        self,
        api: RestApi,
        calls: Calls,
        listener: socket.socket,
        *,
        workers: int,
        max_pending: int,
        max_body_bytes: int,
        timeout_seconds: float,
        drain_seconds: float,
    ) -> None:
        """Makes a server; it does not listen yet.

        Args:
          api: What answers.
          calls: What happens around each call.
          listener: A bound socket.
          workers: How many requests are answered at once.
          max_pending: How many more may wait for that; others are refused with 429.
          max_body_bytes: Longer bodies are refused with 413.
          timeout_seconds: After this long a request is answered with 504. It is not begun if it
            still waited; what runs is run to its end.
          drain_seconds: How long `stop` waits for requests that are being answered.
        """
        self._api = api
        self._calls = calls
        self._listener = listener
        self._max_body_bytes = max_body_bytes
        self._timeout_seconds = timeout_seconds
        self._drain_seconds = drain_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rest")
        self._places = threading.BoundedSemaphore(workers + max_pending)

    def start(self) -> None:
        """Starts answering."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def stop(self) -> None:
        """Stops listening, lets requests finish, and closes."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()

    async def _open(self) -> web.AppRunner:
        app = web.Application(client_max_size=self._max_body_bytes)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_response_prepare.append(_put_right)
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,  # it fails in ways that cannot be told to the client
            shutdown_timeout=self._drain_seconds,
            handler_cancellation=True,  # a request whose client has gone is not begun
        )
        await runner.setup()
        await web.SockSite(runner, self._listener).start()
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        call = self._api.call(request.method, request.rel_url.raw_path)
        caller = Caller(request.remote or "", request.headers.get("Authorization"), "REST")
        body = b""
        try:
            with self._calls.around(
                caller, call.model, call.api, lambda: body.decode("utf-8", "replace")
            ):
                body = await self._read(request)
                answer = await self._answer_in_pool(request, body)
        except Exception as error:
            if not isinstance(error, StatusError):
                _log.exception("a request failed in the server")
            answer = self._api.failure(error)
        headers = {"WWW-Authenticate": "Bearer"} if answer.status == 401 else None
        return web.Response(
            status=answer.status,
            body=answer.body,
            content_type=answer.content_type,
            headers=headers,
        )

    async def _read(self, request: web.Request) -> bytes:
        """Returns the body, decompressed."""
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise self._too_long() from None
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding == "identity" or not body:
            return body
        if encoding not in ("gzip", "deflate"):
            raise invalid_argument(f"Content-Encoding {encoding} is not gzip or deflate")
        unpacked = await asyncio.to_thread(_decompress, body, encoding, self._max_body_bytes + 1)
        if len(unpacked) > self._max_body_bytes:
            raise self._too_long()
        return unpacked

    def _too_long(self) -> StatusError:
        return StatusError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"The request body is longer than {self._max_body_bytes} bytes.",
            http_status=413,
        )

    async def _answer_in_pool(self, request: web.Request, body: bytes) -> Answer:
        if not self._places.acquire(blocking=False):
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
        work = self._pool.submit(self._api.handle, request.method, request.rel_url.raw_path, body)
        work.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self._timeout_seconds)
        except TimeoutError:
            raise StatusError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"Timed out after {self._timeout_seconds:g} s."
            ) from None


def _decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Unpacks a body as far as `max_bytes`."""
    # What is called deflate ought to have zlib's header, but need not.
    raw = encoding == "deflate" and body[:1] and body[0] & 15 != zlib.DEFLATED
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS if raw else _ZLIB_OR_GZIP)
    try:
        unpacked = unpacker.decompress(body, max_bytes)
    except zlib.error as error:
        raise invalid_argument(f"The request body is not {encoding}: {error}") from error
    if not unpacker.eof and len(unpacked) < max_bytes:
        raise invalid_argument(f"The request body is not {encoding}: it ends too early")
    return unpacked


async def _put_right(request: web.Request, response: web.StreamResponse) -> None:
    """Makes an answer of aiohttp's own, such as one to an Expect that it does not know, JSON."""
    if isinstance(response, web.HTTPException):
        body = response.body = write_error(response.reason)
        response.content_type = "application/json"
        response.headers["Content-Length"] = str(len(body))  # that of the other body is set already
