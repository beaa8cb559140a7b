"""The client's calls over REST."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import urllib3

from serving.client_address import rest_url
from serving.client_error import ServingError
from serving.client_grpc import Input

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# More connections than this may be open at once; they are closed after use.
_MAX_IDLE_CONNECTIONS = 16


class RestTransport:
    """Calls the `/v1/models/NAME` paths of one model."""

    def __init__(self, address: str, model: str, timeout: float, token: str | None = None) -> None:
        """Makes a transport; the connection is opened by the first call."""
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._url = f"{rest_url(address)}/v1/models/{quote(model, safe='')}"
        self._timeout = timeout
        self._pool = urllib3.PoolManager(maxsize=_MAX_IDLE_CONNECTIONS, retries=False)

    def predict(
        self,
        signature: str,
        inputs: Mapping[str, Input],
        *,
        timeout: float | None = None,
        version: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs a signature; see `GrpcTransport.predict`."""
        # Columns, because a request in rows cannot be empty.
        columns = {
            name: values.tolist() if isinstance(values, np.ndarray) else list(values)
            for name, values in inputs.items()
        }
        body = {"signature_name": signature, "inputs": columns}
        outputs = self._call("POST", f"{_of(version)}:predict", body, timeout)["outputs"]
        named = outputs if isinstance(outputs, dict) else {"": outputs}
        return {name: np.array(value, object) for name, value in named.items()}

    def status(self, *, timeout: float | None = None) -> list[tuple[int, str, str]]:
        """Returns version, state and error of each version the server has seen."""
        return [
            (int(entry["version"]), entry["state"], entry["status"]["error_message"])
            for entry in self._call("GET", "", None, timeout)["model_version_status"]
        ]

    def signatures(
        self, *, timeout: float | None = None, version: int | None = None
    ) -> dict[str, dict[str, str]]:
        """Returns, of each signature, the name and the DataType of each input."""
        answer = self._call("GET", f"{_of(version)}/metadata", None, timeout)
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        return {
            signature: {name: info["dtype"] for name, info in facts["inputs"].items()}
            for signature, facts in signatures.items()
        }

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float | None
    ) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        seconds = urllib3.Timeout(total=self._timeout if timeout is None else timeout)
        try:
            response = self._pool.request(
                method, self._url + path, body=raw, headers=self._headers, timeout=seconds
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise ServingError("DEADLINE_EXCEEDED", str(error)) from error
        except urllib3.exceptions.HTTPError as error:
            raise ServingError("UNAVAILABLE", str(error)) from error
        code = _CODES.get(response.status, "UNKNOWN")
        try:
            answer = json.loads(response.data)
        except ValueError as error:
            text = response.data[:200].decode(errors="replace")
            raise ServingError(code, f"not a JSON answer: {text}") from error
        if response.status != 200:
            raise ServingError(code, answer["error"])
        return answer


def _of(version: int | None) -> str:
    return "" if version is None else f"/versions/{version}"
