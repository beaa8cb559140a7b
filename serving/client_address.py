"""The address of a server, as a person types it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from towers.errors import InputError

_HOST_AND_PORT = re.compile(r"(?:\[[^\s\[\]/@]+\]|[^\s\[\]/@:?#]+):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65_535


def grpc_address(address: str) -> str:
    """Returns the address of a gRPC server, checked: what gRPC makes of others surprises.

    It takes port 443 where none is named, and port 34463 for 99999.

    Raises:
      InputError: It is not `HOST:PORT`.
    """
    if not _is_host_and_port(address):
        raise InputError(
            f"{address!r} is not the address of a gRPC server: expected HOST:PORT, such as "
            "localhost:8500 (a URL is for REST: transport='rest', --rest)."
        )
    return address


def rest_url(address: str) -> str:
    """Returns the URL that the paths of the REST API begin with, without a slash at its end.

    Args:
      address: `HOST:PORT` or a URL; a proxy's may leave out the port or have a path.

    Raises:
      InputError: It is neither.
    """
    if _is_host_and_port(address):
        return f"http://{address}"
    if not _is_url(address):
        raise InputError(
            f"{address!r} is not the address of a REST server: expected HOST:PORT or a URL, such "
            "as localhost:8501 or http://localhost:8501."
        )
    return address.rstrip("/")


def _is_host_and_port(address: str) -> bool:
    match = _HOST_AND_PORT.fullmatch(address)
    return match is not None and 0 < int(match["port"]) <= _MAX_PORT


def _is_url(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.username or parts.query or parts.fragment)
            and not re.search(r"\s", address)
        )
    except ValueError:  # a port that is no port, a bracket too few
        return False
