"""The HTTP server under the REST API: aiohttp on a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from serving.server.rest_json import write_error

Handler = Callable[[str, str, bytes], tuple[int, bytes]]


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
        max_body_bytes: int,
        drain_seconds: float,
    ) -> None:
        """Makes a server; it does not listen yet.

        Args:
          handle: Method, path and body to status and JSON body.
          listener: A bound socket.
          workers: How many requests are answered at once.
          max_body_bytes: Longer bodies are refused with 413.
          drain_seconds: How long `stop` waits for requests that are being answered.
        """
        self._handle = handle
        self._listener = listener
        self._max_body_bytes = max_body_bytes
        self._drain_seconds = drain_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rest")

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
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=self._drain_seconds)
        await runner.setup()
        await web.SockSite(runner, self._listener).start()
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            status, answer = (
                413,
                write_error(f"The request body is longer than {self._max_body_bytes} bytes."),
            )
        else:
            status, answer = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._handle, request.method, request.rel_url.raw_path, body
            )
        return web.Response(status=status, body=answer, content_type="application/json")
