"""The loop of a client program: a line of JSON says what to do, and a line of JSON says what came of it.

    {"operation": "get", "arguments": {"key": "a/b", "path": "/somewhere/file"}}
    {"result": null}, or {"error": "what the client says"}

The first line of all is {"version": "..."}. Bodies travel in files. Endpoint, region and credentials come from the
environment, under the names that AWS's tools read, and so does BUCKET.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

BUCKET = os.environ["BUCKET"]
ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
SCHEME, _, AUTHORITY = ENDPOINT.partition("://")
REGION = os.environ["AWS_REGION"]
ACCESS_KEY = os.environ["AWS_ACCESS_KEY_ID"]
SECRET_KEY = os.environ["AWS_SECRET_ACCESS_KEY"]
CA_BUNDLE = os.environ.get("AWS_CA_BUNDLE")

_ANSWERS = os.fdopen(os.dup(sys.stdout.fileno()), "w")
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer


def answer(version: str, *operations: Callable[..., Any]) -> None:
    """Serve until standard input ends. An operation is called by the name of its function."""
    by_name = {operation.__name__: operation for operation in operations}
    print(json.dumps({"version": version}), file=_ANSWERS, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": by_name[request["operation"]](**request["arguments"])}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=_ANSWERS, flush=True)


def run(*command: str, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE) -> str:
    """Run a command to its end and return what it printed. Raises RuntimeError with its last words when it fails."""
    done = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} exited with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return (done.stdout or b"").decode()
