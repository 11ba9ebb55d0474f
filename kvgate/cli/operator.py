"""How the verbs of an operator ask the admin port, which needs no key pair."""

from __future__ import annotations

import argparse
import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit

from kvgate.cli.terminal import printable
from kvgate.errors import ConfigError, GatewayError, GatewayUnavailable

_DEFAULT_URL = "http://127.0.0.1:9001"
_TIMEOUT_S = 10.0
_MAX_ANSWER_NBYTES = 64 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option of every verb that asks the admin port."""
    parser.add_argument(
        "--admin-url",
        default=os.environ.get("KVGATE_ADMIN_URL") or _DEFAULT_URL,
        help=f"the operator's port (default: KVGATE_ADMIN_URL, else {_DEFAULT_URL})",
    )


def address_of(url: str) -> tuple[str, int]:
    """Host and port. Raises ConfigError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None:
        raise ConfigError(f"--admin-url: expected http://HOST:PORT, got {printable(url[:80])!r}")
    return parts.hostname, port


def ask(host: str, port: int, path: str, method: str = "GET") -> dict[str, Any]:
    """The report at a path. A POST has a body of `{}`. Raises GatewayUnavailable, GatewayError."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        if method == "POST":
            connection.request(method, path, b"{}", {"Content-Type": "application/json"})
        else:
            connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read(_MAX_ANSWER_NBYTES)
    except (OSError, http.client.HTTPException) as error:
        raise GatewayUnavailable(f"no gateway answers at http://{host}:{port}: {error}") from error
    finally:
        connection.close()
    try:
        report = json.loads(body)
    except ValueError:
        report = None
    if answer.status not in (200, 202, 409) or not isinstance(report, dict):
        raise GatewayError(f"http://{host}:{port}{path} answered {answer.status}", status=answer.status)
    return report
