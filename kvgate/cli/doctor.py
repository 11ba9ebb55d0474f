"""`kvgate doctor`: what this machine offers a gateway, line by line, with what to mend."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from kvgate.cli.defaults import data_folder
from kvgate.cli.machine import devices, disk, memory, system
from kvgate.cli.machine.finding import Finding

DESCRIPTION = """\
Say what this machine offers a gateway: limits, memory, disk speed, devices. Needs no running gateway and no
configuration, changes nothing, and takes a few seconds: it writes up to 128 MiB to a nameless temporary file in the
data folder's disk. Each line is `ok`, `warn` (works, but could be better; the mend follows) or `absent`.
"""

EXAMPLES = """\
examples:
  kvgate doctor
  kvgate doctor --data /mnt/nvme/kvgate     measure another disk
  kvgate doctor --json | jq '.[] | select(.state == "warn")'
"""

_MARKS = {"ok": "ok    ", "warn": "WARN  ", "absent": "absent"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="measure the disk of this folder (default: the data folder)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array of findings")


def run(options: argparse.Namespace) -> int:
    """Print every finding; 0 even when some could be better, because a gateway runs all the same."""
    found = list(_findings(options.data or data_folder()))
    if options.json:
        json.dump([dataclasses.asdict(finding) for finding in found], sys.stdout, indent=2)
        print()
        return 0
    for finding in found:
        print(f"{_MARKS[finding.state]}  {finding.name}: {finding.value}")
        print(f"        {finding.meaning}")
        if finding.mend:
            print(f"        mend: {finding.mend}")
    warnings = sum(finding.state == "warn" for finding in found)
    print(f"\n{warnings} of {len(found)} could be better." if warnings else "\nNothing to mend.")
    return 0


def _findings(folder: Path) -> Iterator[Finding]:
    yield from system.findings()
    yield from memory.findings()
    yield from disk.findings(folder)
    yield from devices.findings()
