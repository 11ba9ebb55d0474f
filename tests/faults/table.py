"""The table of docs/reliability.md: every fault, what clients of a gateway saw, and the time to recover.

`PYTHONPATH=.:loadtest python -m tests.faults.table --remote redis` runs all faults and prints it, in Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.faults.remotes import FAULTS, REMOTES
from tests.faults.scenario import Outcome, Seen, gateway_pair

HEAD = """\
| fault | GET, in memory | GET, only in the remote tier | PUT | match | `/readyz` | back after | written back after |
|---|---|---|---|---|---|---|---|"""


def row(name: str, outcome: Outcome) -> str:
    """One line of the table."""
    cells = [
        name,
        _told(outcome.local),
        _told(outcome.remote),
        _told(outcome.puts),
        _told(outcome.matches),
        "200, away" if outcome.away else "200" if outcome.ready else "503",
        f"{outcome.recovery_s:.1f} s",
        f"{outcome.not_written} of {outcome.puts.results['200']} never"
        if outcome.not_written
        else f"{outcome.written_s:.1f} s",
    ]
    return f"| {' | '.join(cells)} |"


def _told(seen: Seen) -> str:
    return f"{seen}; ≤ {seen.longest_s * 1000:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--remote", choices=sorted(REMOTES), default="redis")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each fault lasts")
    parser.add_argument("--fault", choices=list(FAULTS), action="append", help="only these; may be repeated")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, REMOTES[arguments.remote](Path(folder)) as remote:
        print(HEAD, flush=True)
        wrong: list[str] = []
        with gateway_pair(remote, Path(folder)) as pair:
            for name in arguments.fault or FAULTS:
                outcome = pair.live_through(name, arguments.seconds)
                wrong += outcome.wrong
                print(row(name, outcome), flush=True)
    if wrong:
        raise SystemExit(f"{len(wrong)} answers with a wrong byte")


if __name__ == "__main__":
    main()
