"""How the gRPC port is set up: TLS from an SSLConfig, and channel arguments."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

import grpc

from serving.server.text_proto import SSLConfig, read_text_proto
from towers.errors import InputError


def server_credentials(ssl_config_file: str | Path) -> grpc.ServerCredentials:
    """Reads TF Serving's SSLConfig, in which keys and certificates stand as PEM.

    Where `client_verify` is true, clients need a certificate that `custom_ca` signed (mutual TLS).

    Raises:
      InputError: The file cannot be read, key and certificate are missing or no pair, or clients
        are to be verified without an authority.
    """
    config = read_text_proto(ssl_config_file, SSLConfig())
    if config.client_verify and not config.custom_ca:
        raise InputError(f"{ssl_config_file}: client_verify needs the authority in custom_ca.")
    _check_pair(ssl_config_file, config.server_key, config.server_cert)
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def channel_arguments(text: str) -> dict[str, int | str]:
    """Reads `--grpc-channel-arguments`: NAME=VALUE, with commas between; whole numbers are such.

    Raises:
      InputError: One has no value.
    """
    arguments: dict[str, int | str] = {}
    for argument in filter(None, text.split(",")):
        name, equals, value = argument.partition("=")
        if not (name and equals):
            raise InputError(
                f"{argument!r} is no gRPC channel argument: expected NAME=VALUE, such as "
                "grpc.max_connection_age_ms=2000."
            )
        try:
            arguments[name] = int(value)
        except ValueError:
            arguments[name] = value
    return arguments


def _check_pair(file: str | Path, key: str, certificate: str) -> None:
    # gRPC would only say that it cannot listen.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
        pem.write(f"{key}\n{certificate}\n")
        pem.flush()
        try:
            # The password is asked for on the terminal where none is given.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem.name, password="")
        except (ssl.SSLError, OSError) as error:
            raise InputError(
                f"{file}: server_key and server_cert are no pair of PEM texts: {error}"
            ) from error
