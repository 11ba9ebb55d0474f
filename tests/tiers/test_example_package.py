"""A tier from another package: installed as its user would, checked by the contract, and used by a gateway."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvgate.chunk.key import ManifestKey
from kvgate.client.sync import Client
from kvgate.errors import CorruptCopy
from kvgate.memory.arena import Arena
from kvgate.tiers.base import HERE, SharedTier
from tests.client.chunks import SPACE
from tests.contracts.shared_tier import SharedTierContract, name_of
from tests.gateways import ALPHA, RunningGateway, default_config

PACKAGE = Path(__file__).parent / "example_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip installs it."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(PACKAGE, folder / "source")  # building leaves files beside the sources
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([*pip, "install", *options, str(folder / "source")], check=True, timeout=120)
    return folder / "site"


@pytest.fixture(scope="module")
def module(installed: Path) -> Iterator[Any]:
    sys.path.insert(0, str(installed))
    yield importlib.import_module("kvgate_sqlite")
    sys.path.remove(str(installed))


def environment(installed: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])}


class TestSqliteTier(SharedTierContract):
    """All that the package has to do for its tier to be right."""

    capacity_nbytes = None

    @pytest.fixture
    async def tier(self, module: Any, tmp_path: Path) -> AsyncIterator[SharedTier]:
        tier = module.SqliteTier(module.SqliteConfig(path=tmp_path / "shared.sqlite3"))
        await tier.start(lambda _: None)
        yield tier
        await tier.close()

    @pytest.fixture
    async def other(self, module: Any, tier: SharedTier, tmp_path: Path) -> AsyncIterator[SharedTier]:
        other = module.SqliteTier(module.SqliteConfig(path=tmp_path / "shared.sqlite3"))
        await other.start(lambda _: None)
        yield other
        await other.close()

    async def test_damaged_row_is_noticed(self, tier: Any, arena: Arena) -> None:
        record, _ = await self.put(tier, arena, "k", os.urandom(1000))
        await tier.run((), tier.db.execute, "update blocks set bytes = ?", (os.urandom(1000),))
        with pytest.raises(CorruptCopy):
            await self.get(tier, arena, record, HERE)
        await tier.run((), tier.db.execute, "update blocks set bytes = ?", (b"short",))
        assert await tier.lookup([name_of(record)]) == [None]


def config(folder: Path, **options: Any) -> dict[str, Any]:
    values = default_config(folder)
    values["tiers"]["local-copies"] = {"kind": "sqlite", "path": str(folder / "shared.sqlite3")} | options
    return values


def check(installed: Path, folder: Path, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = folder / "kvgate.yaml"
    file.write_text(yaml.safe_dump(values))
    return subprocess.run(
        [sys.executable, "-m", "kvgate.cli", "config", "check", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment(installed),
        check=False,
    )


def test_its_options_are_checked_and_printed_like_all_others(installed: Path, tmp_path: Path) -> None:
    answer = check(installed, tmp_path, config(tmp_path, write="through"))
    assert answer.returncode == 0, answer.stderr
    tier = yaml.safe_load(answer.stdout)["tiers"]["local-copies"]
    assert tier.items() >= {"path": str(tmp_path / "shared.sqlite3"), "busy_timeout": "5s", "write": "through"}.items()
    answer = check(installed, tmp_path, config(tmp_path, busy_timout="1s"))
    assert answer.returncode != 0
    assert "tiers.local-copies.busy_timout: unknown key; did you mean 'busy_timeout'?" in answer.stderr


def test_without_the_package_the_choices_are_named(tmp_path: Path) -> None:
    answer = check(tmp_path, tmp_path, config(tmp_path))
    assert answer.returncode != 0
    assert "no plug-in 'sqlite' in kvgate.tiers; installed: " in answer.stderr


def test_gateways_share_it(installed: Path, tmp_path: Path) -> None:
    """What one gateway was given, another one serves that has never seen it."""
    shared, key = str(tmp_path / "shared.sqlite3"), str(ManifestKey(SPACE.id))
    gateways = []
    try:
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            values = config(folder, path=shared, write="through")
            gateways.append(RunningGateway(folder, values, environment=environment(installed)).start())
        first, second = gateways
        with urllib.request.urlopen(f"{first.admin_url}/readyz", timeout=10) as answer:
            assert "local-copies" in json.dumps(json.load(answer))
        with Client(first.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30, local=False) as writer:
            writer.put("alpha-bucket", key, SPACE.canonical_json())
        assert first.metrics()['kvgate_tier_objects{tier="local-copies"}'] == 1
        first.kill()
        with Client(second.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30, local=False) as reader:
            assert reader.get("alpha-bucket", key).body == SPACE.canonical_json()
    finally:
        for gateway in gateways:
            gateway.kill()
