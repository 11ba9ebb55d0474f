"""Digests of weights: of names and contents, remembered only while nothing suggests that a file has changed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from engine_adapters import file_digest
from engine_adapters.file_digest import files_digest
from kvgate.errors import UnsupportedModel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kvgate" / "digests.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    read: list[str] = []
    real = hashlib.file_digest

    def note(file: object, algorithm: str) -> object:
        read.append(Path(getattr(file, "name")).name)  # noqa: B009 - any open file has one
        return real(file, algorithm)  # type: ignore[arg-type]

    monkeypatch.setattr(file_digest.hashlib, "file_digest", note)
    return read


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def keep_times(path: Path, content: bytes) -> None:
    """Change a file without changing its size and mtime."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_order_of_the_files_and_their_folder_do_not_matter_but_names_and_contents_do(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a" / "1", b"first"), write(tmp_path / "a" / "2", b"second")
    known = files_digest([one, two])
    assert files_digest([two, one]) == known
    assert files_digest([write(tmp_path / "b" / "1", b"first"), write(tmp_path / "b" / "2", b"second")]) == known
    others = [
        [one],
        [write(tmp_path / "c" / "1", b"first"), write(tmp_path / "c" / "3", b"second")],
        [write(tmp_path / "d" / "1", b"second"), write(tmp_path / "d" / "2", b"first")],
        [],
    ]
    assert len({known, *map(files_digest, others)}) == 5


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, reads: list[str]) -> None:
    file = write(tmp_path / "weights", b"one")
    first = files_digest([file])
    assert files_digest([file]) == first
    assert reads == ["weights"]
    keep_times(file, b"two")
    assert files_digest([file]) != first
    keep_times(file, b"one")
    assert files_digest([file]) == first
    assert reads == ["weights"] * 3


def test_a_file_put_in_the_place_of_another_is_read(tmp_path: Path, reads: list[str]) -> None:
    file, other = write(tmp_path / "weights", b"one"), write(tmp_path / "other", b"two")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    first = files_digest([file])
    other.rename(file)
    assert files_digest([file]) != first
    assert len(reads) == 2


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path, reads: list[str]) -> None:
    blobs = [write(tmp_path / "blobs" / name, name.encode()) for name in ("one", "two")]
    link = tmp_path / "weights"
    link.symlink_to(blobs[0])
    first = files_digest([link])
    link.unlink()
    link.symlink_to(blobs[1])
    assert files_digest([link]) != first
    assert reads == ["one", "two"]


def test_what_others_could_have_written_is_not_believed(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    file = write(tmp_path / "weights", b"one")
    right = files_digest([file])
    remembered = json.loads(cache.read_bytes())
    remembered[str(file)][-1] = "0" * 64
    cache.write_text(json.dumps(remembered))
    assert files_digest([file]) != right  # its owner may write there
    cache.chmod(0o666)
    assert files_digest([file]) == right
    for broken in (b"", b"[]", b"{", json.dumps({str(file): ["odd"]}).encode(), b'{"a":' + b"[" * 100_000):
        cache.write_bytes(broken)
        assert files_digest([file]) == right


def test_without_a_place_to_remember_files_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    file = write(tmp_path / "weights", b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "no folder", b"")))
    assert files_digest([file]) == files_digest([file])
    assert len(reads) == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="gone cannot be read"):
        files_digest([tmp_path / "gone"])


def test_those_who_ask_at_the_same_time_read_a_file_once(tmp_path: Path, reads: list[str]) -> None:
    file = write(tmp_path / "weights", bytes(8 << 20))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(files_digest([file]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(set(found)), len(reads)) == (4, 1, 1)


def test_only_the_last_files_are_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    monkeypatch.setattr(file_digest, "_MAX_REMEMBERED", 2)
    files = [write(tmp_path / name, name.encode()) for name in ("a", "b", "c")]
    files_digest(files)
    assert len(json.loads(cache.read_bytes())) == 2
    files_digest([files[2]])
    files_digest([files[0]])
    assert reads == ["a", "b", "c", "a"]
