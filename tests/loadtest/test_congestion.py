"""The system's congestion control is put back, however a run ends."""

from __future__ import annotations

from pathlib import Path

import congestion
import pytest


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tcp_congestion_control"
    monkeypatch.setattr(congestion, "SETTING", path)
    return path


def test_reno_holds_for_the_run_and_is_undone_after_an_error(setting: Path) -> None:
    setting.write_text("bbr\n")
    with pytest.raises(KeyboardInterrupt), congestion.reno() as words:
        assert setting.read_text() == "reno"
        assert words == "reno for this run (bbr otherwise)"
        raise KeyboardInterrupt
    assert setting.read_text() == "bbr"


def test_a_system_that_has_reno_is_left_alone(setting: Path) -> None:
    setting.write_text("reno\n")
    with congestion.reno() as words:
        assert words == "reno, as the system has it"
    assert setting.read_text() == "reno\n"
