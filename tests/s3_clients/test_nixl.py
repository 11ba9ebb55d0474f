"""What is particular to NIXL's OBJ plugin: it looks for objects, and takes less than it asked for as success."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import RunningGateway, default_config
from tests.s3_clients.clients import BUCKET, Client, ClientError, Session, offering

MiB = 1 << 20
KEY = "model@1@0=abc +def"
ENGINES = pytest.mark.parametrize("engine", offering("exists"), ids=[client.name for client in offering("exists")])


@ENGINES
def test_objects_are_looked_for(
    gateway: RunningGateway, run_client: Callable[..., Session], reference: Any, engine: Client
) -> None:
    nixl, key = run_client(engine, gateway.url), f"{engine.name}/{KEY}"
    assert nixl.call("exists", key=key) is False
    reference.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    assert nixl.call("exists", key=key) is True


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway as it is to be configured for NIXL."""
    folder = tmp_path_factory.mktemp("exact")
    config = default_config(folder)
    config["tenants"]["alpha"]["buckets"].append(BUCKET)
    config["listen"]["exact_ranges"] = True
    running = RunningGateway(folder, config).start()
    yield running
    running.kill()


@ENGINES
@pytest.mark.parametrize("nbytes", [1000, 9 * MiB + 17])
def test_a_read_is_all_or_nothing_where_ranges_are_exact(
    exact: RunningGateway, run_client: Callable[..., Session], tmp_path: Path, engine: Client, nbytes: int
) -> None:
    """A read that the CRT engine splits, into ranges of 8 MiB, learns the object's size from the first of them and asks
    for no more than there is: what it was to read no gateway can see."""
    nixl, key, source, back = run_client(engine, exact.url), f"{nbytes}/{KEY}", tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(nbytes))
    nixl.call("put", key=key, path=source)
    too_far = [(nbytes - 1, nbytes + 1), (nbytes, nbytes + 1), (nbytes - 5, 2 * nbytes)]
    if nbytes <= engine.part_nbytes or not engine.part_nbytes:
        too_far.append((0, nbytes + 1))
    for start, stop in too_far:
        with pytest.raises(ClientError, match="NIXL_ERR_BACKEND"):
            nixl.call("get_range", key=key, start=start, stop=stop, path=back)
    for start, stop in ((0, nbytes), (nbytes - 1, nbytes)):
        nixl.call("get_range", key=key, start=start, stop=stop, path=back)
        assert back.read_bytes() == source.read_bytes()[start:stop]
