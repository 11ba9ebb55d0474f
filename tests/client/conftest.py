from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvgate.client.sync import Client
from tests.client.peer import Peer, Server


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts a server that runs the given function for each connection."""
    servers: list[Server] = []

    def start(behaviour: Callable[[Peer], object], **options: Any) -> Server:
        servers.append(Server(behaviour, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def client_of() -> Iterator[Callable[..., Client]]:
    """Makes clients of such servers."""
    clients: list[Client] = []

    def make(server: Server, **options: Any) -> Client:
        clients.append(Client(f"http://127.0.0.1:{server.port}", "AKIDEXAMPLE", "not-a-real-secret", **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
