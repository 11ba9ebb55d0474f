"""Entry points are found by name, and what is wrong with them is said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvgate import plugins
from kvgate.errors import ConfigError

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path that offers ``name = value`` in the group ``kvgate.flavours``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "flavour_shop.py").write_text("VANILLA = 'vanilla'\n")

    def _install(distribution: str, line: str) -> None:
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[kvgate.flavours]\n{line}\n")

    yield _install
    sys.modules.pop("flavour_shop", None)


def test_loads_the_object_that_an_entry_point_names(install: Install) -> None:
    install("shop", "vanilla = flavour_shop:VANILLA")
    assert plugins.load("kvgate.flavours", "vanilla") == "vanilla"
    assert plugins.names("kvgate.flavours") == ["vanilla"]


def test_unknown_name_lists_the_installed_ones(install: Install) -> None:
    install("shop", "vanilla = flavour_shop:VANILLA")
    with pytest.raises(ConfigError, match=r"no plug-in 'lemon' in kvgate\.flavours; installed: vanilla"):
        plugins.load("kvgate.flavours", "lemon")


def test_unknown_group_says_that_nothing_is_installed() -> None:
    with pytest.raises(ConfigError, match="installed: none"):
        plugins.load("kvgate.no_such_group", "lemon")


def test_one_name_with_two_objects_is_refused(install: Install) -> None:
    install("shop", "vanilla = flavour_shop:VANILLA")
    install("rival", "vanilla = flavour_shop:OTHER")
    with pytest.raises(ConfigError, match="offered twice, by flavour_shop:OTHER and flavour_shop:VANILLA"):
        plugins.load("kvgate.flavours", "vanilla")


@pytest.mark.parametrize("value", ["no_such_module:X", "flavour_shop:NO_SUCH_NAME"])
def test_what_cannot_be_imported_is_a_configuration_error(install: Install, value: str) -> None:
    install("shop", f"broken = {value}")
    with pytest.raises(ConfigError, match=f"{value}.*cannot be loaded: .*no_such|NO_SUCH"):
        plugins.load("kvgate.flavours", "broken")


def test_the_built_in_tiers_and_policies_come_through_this_door() -> None:
    assert {"host", "disk"} <= set(plugins.names("kvgate.tiers"))
    assert "lru" in plugins.names("kvgate.eviction")
