"""The client's calls over REST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import requests

from serving.client_error import ServingError

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


class RestTransport:
    """Calls the `/v1/models/NAME` paths of one model."""

    def __init__(self, address: str, model: str, timeout: float) -> None:
        """Makes a transport; the connection is opened by the first call."""
        base = address if "://" in address else f"http://{address}"
        self._url = f"{base.rstrip('/')}/v1/models/{quote(model, safe='')}"
        self._timeout = timeout
        self._session = requests.Session()

    def predict(self, signature: str, name: str, strings: Sequence[str]) -> dict[str, list]:
        """Runs a signature on one input of strings; returns its outputs as nested lists."""
        # Columns, because a request in rows cannot be empty.
        body = {"signature_name": signature, "inputs": {name: list(strings)}}
        outputs = self._call("POST", ":predict", body)["outputs"]
        return outputs if isinstance(outputs, dict) else {"": outputs}

    def status(self) -> list[tuple[int, str, str]]:
        """Returns version, state and error of each version the server has seen."""
        return [
            (int(entry["version"]), entry["state"], entry["status"]["error_message"])
            for entry in self._call("GET", "", None)["model_version_status"]
        ]

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            response = self._session.request(
                method, self._url + path, json=body, timeout=self._timeout
            )
            answer = response.json()
        except requests.Timeout as error:
            raise ServingError("DEADLINE_EXCEEDED", str(error)) from error
        except requests.JSONDecodeError as error:
            code = _CODES.get(response.status_code, "UNKNOWN")
            raise ServingError(code, f"not a JSON answer: {response.text[:200]}") from error
        except requests.RequestException as error:
            raise ServingError("UNAVAILABLE", str(error)) from error
        if response.status_code != 200:
            raise ServingError(_CODES.get(response.status_code, "UNKNOWN"), answer["error"])
        return answer
