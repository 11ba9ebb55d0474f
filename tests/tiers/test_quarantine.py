from __future__ import annotations

from pathlib import Path

from kvgate.tiers.quarantine import Quarantine


def put(path: Path, nbytes: int) -> Path:
    path.write_bytes(bytes(nbytes))
    return path


def test_keeps_the_newest_within_both_bounds(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", max_nbytes=100, max_files=3)
    quarantine.open()
    for number in range(5):
        assert quarantine.take(put(tmp_path / f"f{number}", 10))
    assert quarantine.kept == (3, 30)
    assert sorted(path.name.partition("-")[2] for path in (tmp_path / "q").iterdir()) == ["f2", "f3", "f4"]
    assert quarantine.take(put(tmp_path / "f5", 90))
    assert quarantine.kept == (2, 100)
    assert not list(tmp_path.glob("f*"))


def test_what_is_larger_than_all_of_it_is_removed_and_pushes_nothing_out(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", max_nbytes=100, max_files=3)
    quarantine.open()
    quarantine.take(put(tmp_path / "small", 10))
    assert quarantine.take(put(tmp_path / "large", 101))
    assert not (tmp_path / "large").exists()
    assert quarantine.kept == (1, 10)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", max_nbytes=100, max_files=3)
    quarantine.open()
    assert not quarantine.take(tmp_path / "none")


def test_with_no_room_files_are_removed_at_once(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", max_nbytes=0, max_files=0)
    quarantine.open()
    assert quarantine.take(put(tmp_path / "f", 0))
    assert quarantine.take(put(tmp_path / "g", 1))
    assert quarantine.kept == (0, 0)
    assert not list((tmp_path / "q").iterdir())


def test_what_an_earlier_run_has_left_is_brought_within_the_bounds(tmp_path: Path) -> None:
    wide = Quarantine(tmp_path / "q", max_nbytes=1000, max_files=10)
    wide.open()
    for number in range(5):
        wide.take(put(tmp_path / f"f{number}", 10))
    narrow = Quarantine(tmp_path / "q", max_nbytes=1000, max_files=2)
    narrow.open()
    assert narrow.kept == (2, 20)
