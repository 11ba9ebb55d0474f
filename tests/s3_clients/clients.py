"""The S3 clients of the tests: each a program of its own, in an environment of its own, with default settings."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateways import ALPHA

INSTALLED = Path(__file__).parents[2] / ".cache" / "clients"
PROGRAMS = Path(__file__).parent / "programs"
OWN_PYTHON = str(INSTALLED / "python" / "bin" / "python")
BUCKET = "s3-clients"
ANSWER_S = 120.0

OBJECTS = frozenset({"put", "get"})
LIBRARY = OBJECTS | {"get_range", "list_under", "copy", "delete", "delete_under"}
MEMORY = frozenset({"put", "get_range", "exists"})
COMMAND = OBJECTS | {"list_under", "copy", "delete", "delete_under", "sync_up", "sync_down"}


@dataclass(frozen=True)
class Client:
    """One S3 client.

    operations:   what its program answers
    part_nbytes:  how large the parts are in which it uploads; a larger body is one that it sends in parts
    installation: what .ci/clients calls it; empty for what kvgate's development environment brings
    cannot_say:   keys, by their name in the tests, that the client changes or refuses before it sends a request
    """

    name: str
    command: tuple[str, ...]
    operations: frozenset[str]
    part_nbytes: int = 0
    installation: str = ""
    cannot_say: frozenset[str] = frozenset()

    @property
    def unavailable(self) -> str:
        """Why it cannot be run here; empty when it can."""
        reason = INSTALLED / f"{self.installation}.unavailable"
        if not self.installation:
            return ""
        if reason.exists():
            return reason.read_text().strip()
        return "" if Path(OWN_PYTHON).exists() else "not installed; run .ci/clients"


def _python(program: str, *arguments: str, own: bool = True) -> tuple[str, ...]:
    return (OWN_PYTHON if own else sys.executable, str(PROGRAMS / program), *arguments)


MiB = 1 << 20
NODE = str(INSTALLED / "python" / "bin" / "node")
AWS = str(Path(sys.executable).with_name("aws"))

NO_EMPTY_SEGMENT = frozenset({"double slash"})

CLIENTS = [
    Client("boto3", _python("boto3_client.py", own=False), LIBRARY | {"upload"}, 8 * MiB),
    Client("boto3-crt", _python("boto3_crt.py", own=False), OBJECTS | {"upload"}, 8 * MiB),
    Client("aws-cli", _python("aws_cli.py", AWS, own=False), COMMAND | {"get_range", "upload"}, 8 * MiB),
    Client("aiobotocore", _python("aiobotocore_client.py"), LIBRARY | {"upload"}, 5 * MiB, "aiobotocore"),
    Client("s3fs", _python("s3fs_client.py"), LIBRARY | {"upload"}, 50 * MiB, "aiobotocore"),
    Client("obstore", _python("obstore_client.py"), LIBRARY | {"upload"}, 5 * MiB, "obstore", NO_EMPTY_SEGMENT),
    Client("pyarrow", _python("pyarrow_client.py"), LIBRARY | {"upload"}, 10 * MiB, "pyarrow", NO_EMPTY_SEGMENT),
    Client("minio", _python("minio_client.py"), LIBRARY | {"upload"}, 5 * MiB, "minio"),
    Client("s3cmd", _python("s3cmd.py"), COMMAND | {"upload", "resume"}, 15 * MiB, "s3cmd"),
    Client("rclone", _python("rclone.py"), COMMAND | {"get_range", "upload"}, 5 * MiB, "rclone", NO_EMPTY_SEGMENT),
    Client("curl", _python("curl.py"), LIBRARY - {"delete_under"} | {"upload"}, 5 * MiB, "curl"),
    Client("javascript", (NODE, str(PROGRAMS / "javascript.cjs")), LIBRARY | {"upload"}, 5 * MiB, "javascript"),
    Client("nixl", _python("nixl_obj.py"), MEMORY, 0, "nixl", NO_EMPTY_SEGMENT),
    Client("nixl-crt", _python("nixl_obj.py", "1"), MEMORY | {"upload"}, 8 * MiB, "nixl", NO_EMPTY_SEGMENT),
]


def offering(operation: str) -> list[Client]:
    """The clients that have an operation."""
    return [client for client in CLIENTS if operation in client.operations]


class ClientError(Exception):
    """What a client said went wrong."""


class Session:
    """A client's program, which works on one bucket until `close`."""

    def __init__(self, client: Client, url: str, bucket: str, folder: Path, ca_bundle: str = "") -> None:
        """folder: for the program's home and log"""
        self.client = client
        self._log = folder / f"{client.name}.log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "NODE_PATH": str(INSTALLED / "node" / "node_modules"),
            "AWS_ACCESS_KEY_ID": ALPHA.access_key,
            "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "BUCKET": bucket,
        }
        if ca_bundle:  # under the names that AWS's tools, Node.js, and OpenSSL with all that follow it, read
            environment |= dict.fromkeys(("AWS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"), ca_bundle)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                client.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=folder
            )
        self.version = str(self._read()["version"])

    @property
    def name(self) -> str:
        return self.client.name

    def offers(self, operation: str) -> bool:
        return operation in self.client.operations

    def call(self, operation: str, **arguments: Any) -> Any:
        """What the client gives back. Raises ClientError with what it says."""
        assert self._process.stdin is not None
        named = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
        self._process.stdin.write(json.dumps({"operation": operation, "arguments": named}).encode() + b"\n")
        self._process.stdin.flush()
        reply = self._read()
        if "error" in reply:
            raise ClientError(reply["error"])
        return reply["result"]

    def get(self, key: str, nbytes: int, path: Path) -> bytes:
        """A whole object of `nbytes`, by way of a file; NIXL can read a range only, and none of nothing."""
        if self.offers("get"):
            self.call("get", key=key, path=path)
        elif nbytes:
            self.call("get_range", key=key, start=0, stop=nbytes, path=path)
        else:
            path.write_bytes(b"")
        return path.read_bytes()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(ANSWER_S):
                raise AssertionError(f"{self.client.name} did not answer in {ANSWER_S:g} s:\n{self._log.read_text()}")
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.client.name} ended:\n{self._log.read_text()}")
        reply: dict[str, Any] = json.loads(line)
        return reply
