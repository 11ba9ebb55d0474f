"""A configuration file is checked as the gateway reads it, and the page of every key is in step with the code.

`python -m tests.cli.test_config` writes the page anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kvgate.cli.config import gateway_reference

if TYPE_CHECKING:
    from .conftest import Kvgate

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
BEGIN, END = "```yaml\n", "```\n"

TENANT = "tenants:\n  acme:\n    access_keys: [{access_key: ACMEKEY, secret_key: hush-hush-hush-hush}]\n"


def page() -> str:
    """The page of every key, as it should be: its own words around what the code says."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + gateway_reference() + END + after


def test_the_page_of_every_key_is_in_step_with_the_code() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.cli.test_config"


def test_reference_prints_every_key_as_yaml(kvgate: Kvgate) -> None:
    answer = kvgate("config", "reference")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == gateway_reference()
    assert {"tenants", "listen", "tiers", "store"} <= set(yaml.safe_load(answer.stdout))


def test_the_example_can_be_used(kvgate: Kvgate) -> None:
    example = ROOT / "conf" / "kvgate.yaml"
    answer = kvgate("config", "check", example)
    assert answer.returncode == 0, answer.stderr
    values = yaml.safe_load(answer.stdout)
    assert values["tiers"]["host"].items() >= {"capacity": "8GiB", "segment": "64MiB", "prefault": "256MiB"}.items()
    assert values["tenants"]["serving"]["quota"] == "120GiB"
    for secret in ("change-me-research-0001", "change-me-serving-00001", "change-me-to-any-long-random-text"):
        assert secret in example.read_text()
        assert secret not in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tenants: this key is required"),
        ("tenants: {}\n", "tenants: expected at least one"),
        (TENANT + "lisen: {}\n", "lisen: unknown key; did you mean 'listen'?"),
        (TENANT + "tiers: {disk: {}}\n", "tiers.disk.path: this key is required"),
        (TENANT + "tiers: {tape: {}}\n", "no plug-in 'tape' in kvgate.tiers; installed: "),
        (TENANT + "store: {eviction: oldest}\n", "no plug-in 'oldest' in kvgate.eviction; installed: "),
        (TENANT.replace("acme", "Ac/me"), "tenant 'Ac/me': expected 1 to 63 of a-z"),
        (TENANT.replace("hush-hush-hush-hush", "hush"), "at least 16 characters"),
        (TENANT + "tenants: {}\n", "line 4, column 1: the key tenants stands twice in one mapping, first on line 1"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(kvgate: Kvgate, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "kvgate.yaml"
    file.write_text(text)
    answer = kvgate("config", "check", file)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert message in answer.stderr
    assert answer.stderr.startswith(f"kvgate: {file}")
    assert answer.stderr.count("\n") == 1
    assert "hush" not in answer.stderr


def test_a_file_that_is_not_there(kvgate: Kvgate, tmp_path: Path) -> None:
    answer = kvgate("config", "check", tmp_path / "none.yaml")
    assert (answer.returncode, answer.stderr) == (2, f"kvgate: {tmp_path}/none.yaml: no such file or directory\n")


if __name__ == "__main__":
    PAGE.write_text(page())
