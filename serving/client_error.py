"""The exception of the client."""

from __future__ import annotations


class ServingError(Exception):
    """A call that the server refused or never answered.

    Attributes:
      code: The canonical code's name, such as NOT_FOUND, INVALID_ARGUMENT, UNAVAILABLE or
        DEADLINE_EXCEEDED; the same over gRPC and REST.
      message: What the server, or the connection, said.
    """

    def __init__(self, code: str, message: str) -> None:
        """Makes an error from its code and message."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
