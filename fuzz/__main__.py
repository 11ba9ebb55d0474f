"""Fuzz every target, a bounded number of inputs in all, and print a table.

    python -m fuzz --inputs 1000000 [TARGET ...]

The in-process targets share the inputs by their weights and run under atheris, two at a time on two cores; the last
sends bytes to a gateway of its own over sockets. What a run learns about which inputs reach which code is kept in
.cache/fuzz/corpus. An input for which a property does not hold ends the run of its target, and is saved in
fuzz/corpus/<target>, where the tests replay it. The exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fuzz import front
from fuzz.draw import random_inputs
from fuzz.saved import digest, keep
from fuzz.targets import TARGETS
from fuzz.targets.base import Target

_LEARNED = Path(".cache/fuzz/corpus")
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where files cost no writes to a disk."""
_PER_MILLION = 1_000_000
_SLOW_S, _RSS_MB, _LONGEST_NBYTES = 20, 2048, 6000
_SEEDS = 30
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_PROGRESS = re.compile(r"^#(\d+)\s.*?cov: (\d+) ft: \d+ corp: (\d+)/", re.MULTILINE)


class Row(NamedTuple):
    """What came of one target. `covered` is the edges of the code that were reached."""

    name: str
    inputs: int
    seconds: float
    covered: str
    corpus: str
    findings: list[str]


def fuzz(target: Target, runs: int, seed: int) -> Row:
    """Run one target in a process of its own; what it says of a finding goes to standard error."""
    learned = _LEARNED / target.name
    learned.mkdir(parents=True, exist_ok=True)
    for data in (*target.seeds, *random_inputs(_SEEDS, seed)):
        (learned / digest(data)).write_bytes(data)
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        words = Path(folder) / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in (*target.words, b"\0")))
        found = Path(folder) / "found"
        found.mkdir()
        began = time.monotonic()
        command = [sys.executable, "-m", "fuzz.worker", target.name, f"-runs={runs}", f"-seed={seed}", f"-dict={words}"]
        command += [f"-max_len={_LONGEST_NBYTES}", f"-timeout={_SLOW_S}", f"-rss_limit_mb={_RSS_MB}"]
        command += ["-len_control=0", "-print_final_stats=1", f"-artifact_prefix={found}/", str(learned)]
        result = subprocess.run(
            command,
            env={**os.environ, "TMPDIR": folder},  # libFuzzer ends without cleaning up
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        seconds = time.monotonic() - began
        findings = [str(keep(target.name, path.read_bytes())) for path in found.iterdir()]
    if result.returncode and not findings:
        findings.append(f"the process ended with {result.returncode}")
    if findings:
        print(f"--- {target.name}\n{result.stdout[-4000:]}", file=sys.stderr)
    executed, progress = _EXECUTED.findall(result.stdout), _PROGRESS.findall(result.stdout)
    _, covered, corpus = progress[-1] if progress else ("", "-", "-")
    return Row(target.name, int(executed[-1]) if executed else 0, seconds, covered, corpus, findings)


def _escaped(word: bytes) -> str:
    """As libFuzzer's dictionaries have it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join((*TARGETS, front.NAME))}")
    parser.add_argument("--inputs", type=int, default=_PER_MILLION, help="how many inputs all targets get together")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31) or 1, help="repeats a run, nearly")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets to run at the same time")
    options = parser.parse_args()
    if unknown := {*options.targets} - {*TARGETS, front.NAME}:
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    chosen = options.targets or [*TARGETS, front.NAME]
    shares = {name: TARGETS[name].share if name in TARGETS else front.SHARE for name in chosen}
    runs = {name: max(1, options.inputs * share // sum(shares.values())) for name, share in shares.items()}
    print(f"{options.inputs} inputs, seed {options.seed}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        in_process = [TARGETS[name] for name in chosen if name in TARGETS]
        rows = list(pool.map(lambda target: fuzz(target, runs[target.name], options.seed), in_process))
    if front.NAME in chosen:
        began = time.monotonic()
        sent, saved = front.fuzz(runs[front.NAME], options.seed)
        rows.append(Row(front.NAME, sent, time.monotonic() - began, "-", "-", [str(path) for path in saved]))
    _print_table(rows)
    return any(row.findings for row in rows)


def _print_table(rows: list[Row]) -> None:
    print(f"{'target':12} {'inputs':>9} {'seconds':>8} {'inputs/s':>9} {'edges':>6} {'corpus':>6}  findings")
    for row in rows:
        rate = row.inputs / max(row.seconds, 0.001)
        print(
            f"{row.name:12} {row.inputs:9} {row.seconds:8.1f} {rate:9.0f} {row.covered:>6} {row.corpus:>6}  "
            f"{', '.join(row.findings) or 0}"
        )
    print(f"{'all':12} {sum(row.inputs for row in rows):9} {'':31}  {sum(len(row.findings) for row in rows)}")


if __name__ == "__main__":
    sys.exit(main())
