"""What is printed cannot control the terminal, and a person can read it."""

from __future__ import annotations

import pytest

from kvgate.cli.terminal import Progress, human_size, printable


def test_a_key_cannot_move_the_cursor_or_turn_the_line_around() -> None:
    assert printable("a\x1b[2Jb\r\n\u202ec") == r"a\x1b[2Jb\r\n\u202ec"
    assert printable("Käse 日本 s3://kv/a") == "Käse 日本 s3://kv/a"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (33558528, "32.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert human_size(nbytes) == text


class Watched:
    def __init__(self, watched: bool) -> None:
        self.text = ""
        self.watched = watched

    def isatty(self) -> bool:
        return self.watched

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_progress_rewrites_one_line_at_its_own_pace_and_removes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 0.5, 0.6, 0.9, 1.0, 1.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stderr = Watched(True)
    monkeypatch.setattr("sys.stderr", stderr)
    progress = Progress()
    for count in range(3):
        progress.say(f"{count} done")
    progress.end()
    assert "0 done" not in stderr.text
    assert stderr.text.startswith("\r\x1b[K1 done\r\x1b[K2 done")
    assert stderr.text.endswith("\r\x1b[K")


def test_progress_is_silent_when_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stderr = Watched(False)
    monkeypatch.setattr("sys.stderr", stderr)
    progress = Progress()
    progress.say("done")
    progress.end()
    assert stderr.text == ""
