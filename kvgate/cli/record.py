"""`kvgate record`: a trace of what a gateway is asked for, to be replayed."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from kvgate.cli import operator
from kvgate.cli.terminal import Progress, human_size, printable
from kvgate.config import parse_seconds
from kvgate.errors import ConfigError, GatewayError, GatewayUnavailable

DESCRIPTION = """\
Write down what a gateway is asked for from now on, for `kvgate replay`: which prompts, which objects are read and
written, when, and by which tenant, all as numbers. There is no key, hash, token or name in it. It asks the operator's
port, which needs no key pair, and costs the gateway nothing once it has ended. Ctrl-C ends it early; what was written
by then can be replayed.
"""

EXAMPLES = """\
examples:
  kvgate record trace.jsonl.gz                        a minute
  kvgate record trace.jsonl.gz --for 1h               an hour
  kvgate record trace.jsonl --admin-url http://127.0.0.1:9001
  kvgate replay trace.jsonl.gz --policies all         what other policies would have made of it
"""

_TIMEOUT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("trace", type=Path, metavar="FILE", help="what to write; gzipped when its name ends with .gz")
    parser.add_argument(
        "--for", type=parse_seconds, default=60.0, dest="seconds", metavar="TIME", help="how long (default: 60s)"
    )
    operator.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Write the lines as they come."""
    host, port = operator.address_of(options.admin_url)
    path: Path = options.trace
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        with _begin(connection, host, port, options.seconds) as answer, _opened(path) as file:
            lines, nbytes = _write(answer, file)
    finally:
        connection.close()
    print(f"{lines:,} lines, {human_size(nbytes)}, in {printable(str(path))}")
    return 0


def _begin(connection: http.client.HTTPConnection, host: str, port: int, seconds: float) -> http.client.HTTPResponse:
    """The answer whose body is the recording. Raises GatewayUnavailable, GatewayError."""
    body = json.dumps({"seconds": seconds}).encode()
    try:
        connection.request("POST", "/record", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = "" if answer.status == 200 else printable(answer.read(300).decode(errors="replace").strip())
    except (OSError, http.client.HTTPException) as error:
        raise GatewayUnavailable(f"no gateway answers at http://{host}:{port}: {error}") from error
    if answer.status != 200:
        raise GatewayError(f"the gateway answered {answer.status}: {said}", status=answer.status)
    return answer


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file to write to. Raises ConfigError when it cannot be written."""
    try:
        with path.open("wb") as file:
            if path.suffix != ".gz":
                yield file
                return
            with gzip.GzipFile("", "wb", fileobj=file) as packed:
                yield cast("IO[bytes]", packed)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error


def _write(answer: http.client.HTTPResponse, file: IO[bytes]) -> tuple[int, int]:
    """Write the recording, whole lines only, until it ends; how many lines and bytes. Raises OSError."""
    lines = nbytes = 0
    progress = Progress()
    with contextlib.suppress(KeyboardInterrupt):
        while line := _line(answer):
            if line.strip():
                file.write(line)
                lines, nbytes = lines + 1, nbytes + len(line)
                progress.say(f"{lines:,} lines, {human_size(nbytes)}")
    progress.end()
    return lines, nbytes


def _line(answer: http.client.HTTPResponse) -> bytes:
    """The next line; empty at the end. Raises GatewayUnavailable when the gateway is gone before."""
    try:
        return answer.readline()
    except (OSError, http.client.HTTPException) as error:
        raise GatewayUnavailable(f"the gateway ended the recording: {error}") from error
