"""Fixtures that run real gateways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import RunningGateway, default_config
from tests.stores import Seaweed


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that many tests share: use keys of your own, and leave it running."""
    folder = tmp_path_factory.mktemp("gateway")
    running = RunningGateway(folder, default_config(folder)).start()
    yield running
    running.kill()


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Callable[..., RunningGateway]]:
    """Start a gateway for one test alone. Its arguments are merged into the sections of the default configuration."""
    started: list[RunningGateway] = []

    def start(**sections: Any) -> RunningGateway:
        folder = tmp_path / f"gateway{len(started)}"
        folder.mkdir()
        config = default_config(folder)
        for name, values in sections.items():
            config[name] = config.get(name, {}) | values if isinstance(values, dict) else values
        running = RunningGateway(folder, config)
        started.append(running)
        return running.start()

    yield start
    for running in started:
        running.kill()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 store that many tests share: use prefixes of your own, and leave it running."""
    server = Seaweed(tmp_path_factory.mktemp("seaweedfs"))
    server.start()
    yield server
    server.kill()
