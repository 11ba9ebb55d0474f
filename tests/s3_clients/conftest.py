"""Runs the clients' programs, and ends the session with a line that says which clients ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.gateways import RunningGateway, default_config
from tests.s3.clients import s3_client
from tests.s3_clients.clients import BUCKET, CLIENTS, Client, Session
from tests.s3_clients.requests import Requests

VERSIONS = pytest.StashKey[dict[str, str]]()

Run = Callable[..., Session]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[VERSIONS] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ran = config.stash[VERSIONS]
    skipped = [f"{client.name} ({client.unavailable})" for client in CLIENTS if client.unavailable]
    terminalreporter.write_sep("=", "S3 clients")
    terminalreporter.write_line(f"ran: {', '.join(f'{name} ({version})' for name, version in ran.items()) or 'none'}")
    terminalreporter.write_line(
        f"S3 clients: {len(ran)} of {len(CLIENTS)} ran" + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    )


@pytest.fixture(scope="module")
def run_client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Give the running program of a client, started once a module for one URL; skip where there is none."""
    sessions: dict[tuple[str, str], Session] = {}

    def run(client: Client, url: str, ca_bundle: str = "") -> Session:
        if client.unavailable:
            pytest.skip(f"{client.name}: {client.unavailable}")
        if (client.name, url) not in sessions:
            folder = tmp_path_factory.mktemp(client.name)
            session = sessions[client.name, url] = Session(client, url, BUCKET, folder, ca_bundle)
            request.config.stash[VERSIONS][client.name] = session.version
        return sessions[client.name, url]

    yield run
    for session in sessions.values():
        session.close()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway of these tests alone, so that what it counts is what a client did."""
    folder = tmp_path_factory.mktemp("gateway")
    config = default_config(folder)
    config["tenants"]["alpha"]["buckets"].append(BUCKET)
    running = RunningGateway(folder, config).start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def reference(gateway: RunningGateway) -> Any:
    """A boto3 of the tests' own process, to look at what a client has done."""
    return s3_client(gateway)


@pytest.fixture(autouse=True)
def requests(gateway: RunningGateway) -> Iterator[Requests]:
    """What the test made the gateway do, which fails the test too if a client hid it by trying again or otherwise."""
    requests = Requests(gateway)
    yield requests
    assert not requests.failures()
