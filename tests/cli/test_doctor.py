"""The doctor runs on any machine, changes nothing, and says what to mend."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Kvgate


def test_every_finding_has_a_value_and_a_meaning_and_a_warning_its_mend(kvgate: Kvgate, tmp_path: Path) -> None:
    answer = kvgate("doctor", "--json")
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    findings = json.loads(answer.stdout)
    names = [finding["name"] for finding in findings]
    assert len(names) == len(set(names))
    assert {"python", "kvgate.native", "crc64nvme", "locked memory", "memfd and seals"} <= set(names)
    assert {"disk flush", "GPU", "NIXL"} <= set(names)
    for finding in findings:
        assert set(finding) == {"name", "state", "value", "meaning", "mend"}
        assert finding["state"] in ("ok", "warn", "absent")
        assert finding["value"]
        assert finding["meaning"]
        assert bool(finding["mend"]) == (finding["state"] == "warn"), finding
    assert list(tmp_path.rglob("*")) == [], "a data folder was made or a file left behind"


def test_the_text_says_the_same_to_a_person(kvgate: Kvgate) -> None:
    answer = kvgate("doctor")
    assert answer.returncode == 0, answer.stderr
    assert "crc64nvme: " in answer.stdout
    assert answer.stdout.count("mend: ") == answer.stdout.count("WARN  ")


def test_another_folder_can_be_measured(kvgate: Kvgate, tmp_path: Path) -> None:
    answer = kvgate("doctor", "--json", "--data", tmp_path / "not" / "yet")
    assert f"free disk in {tmp_path}" in [finding["name"] for finding in json.loads(answer.stdout)]
    assert os.listdir(tmp_path) == []
