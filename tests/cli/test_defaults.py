"""Without a configuration file the gateway fits the machine that it starts on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvgate.cli import defaults
from kvgate.config import GiB, MiB, TiB


@pytest.mark.parametrize(("free", "capacity"), [(8 * GiB + 5, 2 * GiB), (MiB, 64 * MiB), (TiB, 32 * GiB)])
def test_the_host_tier_takes_a_bounded_quarter(monkeypatch: pytest.MonkeyPatch, free: int, capacity: int) -> None:
    monkeypatch.setattr(defaults, "free_memory", lambda: free)
    assert defaults.host_capacity() == capacity


@pytest.mark.parametrize(
    ("total", "free", "capacity"),
    [
        (500 * GiB, 400 * GiB, 50 * GiB),
        (500 * GiB, 20 * GiB, 10 * GiB),
        (9 * TiB, 9 * TiB, 256 * GiB),
        (1, 1, 256 * MiB),
    ],
)
def test_the_disk_tier_takes_a_bounded_tenth(
    monkeypatch: pytest.MonkeyPatch, total: int, free: int, capacity: int
) -> None:
    monkeypatch.setattr(defaults, "total_disk", lambda _: total)
    monkeypatch.setattr(defaults, "free_disk", lambda _: free)
    assert defaults.disk_capacity(Path("anywhere")) == capacity


def test_a_full_disk_tier_does_not_shrink_its_own_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "total_disk", lambda _: 500 * GiB)
    monkeypatch.setattr(defaults, "free_disk", lambda _: 300 * GiB)
    empty = defaults.disk_capacity(Path("anywhere"))
    monkeypatch.setattr(defaults, "free_disk", lambda _: 300 * GiB - empty)
    assert defaults.disk_capacity(Path("anywhere")) == empty


@pytest.mark.parametrize(
    ("xdg", "folder"), [("/srv", "/srv/kvgate"), ("", "/h/.local/share/kvgate"), ("rel", "/h/.local/share/kvgate")]
)
def test_the_data_folder_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, xdg: str, folder: str) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("XDG_DATA_HOME", xdg)
    assert defaults.data_folder() == Path(folder)
