"""Who may call, and how often: bearer tokens, and a rate for each client."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import grpc

from serving.server.status import StatusError
from towers.errors import InputError

_MAX_CLIENTS = 10_000  # whose rate is remembered


def read_tokens(path: str | Path) -> list[str]:
    """Reads bearer tokens from a file, one a line; empty lines and those with a # are left out.

    Raises:
      InputError: The file cannot be read or holds no token.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the tokens cannot be read: {error}") from error
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens:
        raise InputError(f"{path}: there is no token; expected one a line.")
    return tokens


class Access:
    """Checks the bearer token of a request, and that its client does not ask too often.

    Safe to use from any thread.
    """

    def __init__(
        self, tokens: Iterable[str] = (), requests_per_second: float | None = None
    ) -> None:
        """Makes a check.

        Args:
          tokens: The tokens that open the API; empty for an API open to all.
          requests_per_second: How many requests a client may make, with bursts of a second's worth;
            None for any number. A client is a token, or an address where there are no tokens.

        Raises:
          InputError: The rate is not above 0.
        """
        if requests_per_second is not None and requests_per_second <= 0:
            raise InputError(
                f"the rate of requests is {requests_per_second}; it has to be above 0."
            )
        # Of digests, not of tokens: how long a look-up takes tells nothing about a token.
        self._digests = {_digest(token) for token in tokens}
        self._rate = requests_per_second
        self._burst = max(1.0, requests_per_second or 1.0)
        self._lock = threading.Lock()
        # client -> (requests left, when that was)
        self._left: dict[bytes | str, tuple[float, float]] = {}

    def check(self, authorization: str | None, address: str) -> None:
        """Lets a request pass.

        Args:
          authorization: The Authorization header, or gRPC metadata.
          address: The address of the client, without the port.

        Raises:
          StatusError: UNAUTHENTICATED without a valid token; RESOURCE_EXHAUSTED where the client
            asks too often.
        """
        client: bytes | str = address
        if self._digests:
            scheme, _, token = (authorization or "").partition(" ")
            client = _digest(token.strip())
            if scheme.lower() != "bearer" or client not in self._digests:
                raise StatusError(
                    grpc.StatusCode.UNAUTHENTICATED,
                    "a valid bearer token is needed: Authorization: Bearer TOKEN",
                )
        if self._rate is not None and not self._take(client, self._rate):
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {self._rate:g} requests a second; try again later",
            )

    def _take(self, client: bytes | str, rate: float) -> bool:
        now = time.monotonic()
        with self._lock:
            left, before = self._left.pop(client, (self._burst, now))
            left = min(self._burst, left + (now - before) * rate)
            # Put last, so that the first is the one that has been silent for longest.
            self._left[client] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > _MAX_CLIENTS:
                del self._left[next(iter(self._left))]
        return left >= 1


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
