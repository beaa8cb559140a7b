"""The HTTP server under the REST API: aiohttp on a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from serving.server.calls import Caller
from serving.server.rest import Answer
from serving.server.rest_json import write_error

Handler = Callable[[str, str, bytes, Caller], Answer]


class HttpServer:
    """Reads requests on an event loop and has them answered by a pool of threads.

    The loop keeps slow clients and idle connections cheap; JSON and the graph stay off it.
    """

    def __init__(
        self,
        handle: Handler,
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
          handle: Method, path, body and caller to an answer.
          listener: A bound socket.
          workers: How many requests are answered at once.
          max_pending: How many more may wait for that; others are refused with 429.
          max_body_bytes: Longer bodies are refused with 413.
          timeout_seconds: After this long a request is answered with 504. It is not begun if it
            still waited; what runs is run to its end.
          drain_seconds: How long `stop` waits for requests that are being answered.
        """
        self._handle = handle
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
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=self._drain_seconds,
            handler_cancellation=True,  # a request whose client has gone is not begun
        )
        await runner.setup()
        await web.SockSite(runner, self._listener).start()
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            answer = _failure(413, f"The request body is longer than {self._max_body_bytes} bytes.")
        else:
            answer = await self._answer_in_pool(request, body)
        headers = {"WWW-Authenticate": "Bearer"} if answer.status == 401 else None
        return web.Response(
            status=answer.status,
            body=answer.body,
            content_type=answer.content_type,
            headers=headers,
        )

    async def _answer_in_pool(self, request: web.Request, body: bytes) -> Answer:
        if not self._places.acquire(blocking=False):
            return _failure(429, "Too many requests are waiting to be answered; try again later.")
        caller = Caller(request.remote or "", request.headers.get("Authorization"), "REST")
        work = self._pool.submit(
            self._handle, request.method, request.rel_url.raw_path, body, caller
        )
        work.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self._timeout_seconds)
        except TimeoutError:
            return _failure(504, f"Timed out after {self._timeout_seconds:g} s.")


def _failure(status: int, message: str) -> Answer:
    return Answer(status, write_error(message))
