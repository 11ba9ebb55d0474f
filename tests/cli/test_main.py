"""The command finds its verb quickly, teaches, and fails in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvgate import __version__
from kvgate.cli.main import VERBS, main
from kvgate.errors import ConfigError, NoSuchKey

if TYPE_CHECKING:
    from .conftest import Kvgate


def test_help_lists_every_verb_with_what_it_does(kvgate: Kvgate) -> None:
    answer = kvgate("--help")
    assert answer.returncode == 0
    for verb, summary in VERBS.items():
        assert f"    {verb}" in answer.stdout
        assert summary in answer.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_teaches_with_examples(kvgate: Kvgate, verb: str) -> None:
    answer = kvgate(verb, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count(f"kvgate {verb}") >= 3
    assert all(len(line) <= 120 for line in answer.stdout.splitlines())


def test_every_verb_is_a_module_and_every_module_with_a_run_is_a_verb() -> None:
    files = (Path(__file__).parents[2] / "kvgate" / "cli").glob("*.py")
    assert {file.stem for file in files if "def run(options: argparse.Namespace)" in file.read_text()} == set(VERBS)


def test_help_imports_nothing_but_the_command_itself() -> None:
    code = "import sys; from kvgate.cli.main import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    loaded = answer.stdout.splitlines()[-1].split()
    assert "kvgate.cli.main" in loaded
    assert not {"aiohttp", "yaml", "awscrt", "kvgate.server", "kvgate.client", "kvgate.cli.serve"} & set(loaded)


def test_version(kvgate: Kvgate) -> None:
    assert kvgate("--version").stdout == f"kvgate {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["sever"], ["serve", "--prot", "1"], ["ls", "a", "b"], ["rm"]])
def test_a_command_line_that_cannot_be_used_exits_with_2_and_the_usage(kvgate: Kvgate, arguments: list[str]) -> None:
    answer = kvgate(*arguments)
    assert answer.returncode == 2
    assert answer.stderr.startswith("usage: kvgate")
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("port: expected a number"), 2), (NoSuchKey("no such object"), 1), (KeyboardInterrupt(), 130)],
)
def test_what_goes_wrong_becomes_a_status_and_one_line(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("kvgate.cli.doctor.run", fail)
    assert main(["doctor"]) == status
    assert capsys.readouterr().err == (f"kvgate: {error}\n" if str(error) else "")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m kvgate.cli config reference | head -1"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0
    assert answer.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_the_command_line_names_every_verb_and_option(kvgate: Kvgate, verb: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", kvgate(verb, "--help").stdout, re.MULTILINE)) - {"--help"}
    assert f"kvgate {verb}" in page
    assert not {option for option in options if option not in page}
