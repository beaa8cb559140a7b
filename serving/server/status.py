"""The error of a request: a canonical code and a message, the same over gRPC and REST."""

from __future__ import annotations

import re

import grpc
import tensorflow as tf

from towers.errors import InputError

_CODES = {code.value[0]: code for code in grpc.StatusCode}

# What Python puts around the message of an op in a graph, for each node that it names: where the
# graph was made, as far as that is known, in files of whoever made it or of this server.
_PREAMBLE = re.compile(
    r"\AGraph execution error:\n\n"
    r"(?:Detected at node .* defined at \(most recent call last\):\n"
    r"(?:[ \t].*\n|\n|<stack traces unavailable>\n|Node: .*\n)*)*"
)
_OP_SUFFIX = re.compile(r" \[Op:\S*\]\Z")


class StatusError(Exception):
    """A request, or the loading of a version, that failed for a reason the client can be told.

    Attributes:
      code: The canonical code.
      message: What was wrong, in TF Serving's words where it has some.
      http_status: The HTTP status, where it is not the one of the code.
    """

    def __init__(self, code: grpc.StatusCode, message: str, http_status: int | None = None) -> None:
        """Makes an error from its code and message."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status

    def __str__(self) -> str:
        """Returns the error as TF Serving prints one inside another."""
        return f"{self.code.name}: {self.message}"

    @classmethod
    def wrap(cls, error: Exception) -> StatusError:
        """Returns `error` as a `StatusError`: TensorFlow's codes are the canonical ones."""
        if isinstance(error, StatusError):
            return error
        if isinstance(error, tf.errors.OpError):
            message = _OP_SUFFIX.sub("", _PREAMBLE.sub("", error.message))
            return cls(_CODES.get(error.error_code, grpc.StatusCode.UNKNOWN), message)
        if isinstance(error, InputError):
            return cls(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return cls(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def invalid_argument(message: str) -> StatusError:
    """The client sent something that can never be right, whatever the state of the server."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> StatusError:
    """The model or the version asked for is not there."""
    return StatusError(grpc.StatusCode.NOT_FOUND, message)
