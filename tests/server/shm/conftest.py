"""Gateways with a socket for shared memory, and attachments to them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvgate.auth.sigv4 import Credential
from kvgate.client.local import Attachment
from kvgate.http.deadline import Deadline
from tests import gateways
from tests.gateways import ALPHA, RunningGateway

StartShm = Callable[..., RunningGateway]
Attach = Callable[..., Attachment]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    folder = Path(tempfile.mkdtemp(prefix="kvgate-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start_shm(start_gateway: Callable[..., RunningGateway], short_path: Path) -> StartShm:
    """Start a gateway that hands its memory on. Arguments as for `start_gateway`."""

    def start(listen: dict[str, Any] | None = None, **sections: Any) -> RunningGateway:
        return start_gateway(listen={"shm_socket": str(short_path / "shm"), **(listen or {})}, **sections)

    return start


@pytest.fixture
def attach() -> Iterator[Attach]:
    """Attach to a gateway, as alpha by default."""
    with contextlib.ExitStack() as stack:

        def make(gateway: RunningGateway, credential: gateways.Credential = ALPHA, **options: Any) -> Attachment:
            signer = Credential(credential.access_key, credential.secret_key)
            path = gateway.config["listen"]["shm_socket"]
            attachment = Attachment(path, signer, Deadline(10), **options)
            stack.callback(attachment.close)
            return attachment

        yield make
