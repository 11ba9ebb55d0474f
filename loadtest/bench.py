"""kvgate beside other servers and the limits of the machine, measured in turn in one run.

Starts `kvgate serve`, a bare TCP peer (raw), and those of redis, valkey, memcached, nginx and SeaweedFS that are
installed, each in processes of its own, and drives all of them with the same client (client.c, compiled now). In every
round of a row each server has its turn; speeds and latencies are medians over the rounds, shares of the limit medians
of each round's own, and CPU is over all rounds. What is not here is skipped, and the report says why.

  rows      GET and PUT of 256 KiB to 32 MiB on 1 and 8 connections, and HEAD, against bare TCP; match; a batch of
            64 chunks; shared memory against memcpy; objects on disk alone against preadv of their files; the two HTTP
            fronts of the gateway
  server    CPU of the server and all its processes, resident memory after the row
  client    CPU of the client, the same program for each server; what it can do is what the raw rows show
  goal      what kvgate should reach in the row, and whether it did

  python loadtest/bench.py --quick
  python loadtest/bench.py --only 'GET 4M*' --only 'HEAD*' --peers redis memcached --rounds 9
  python loadtest/bench.py --json run.json --plot run.png --markdown run.md
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

import machine
import plot
import report
from bed import PEERS, Bed, say, scratch
from congestion import reno
from driver import Driver
from rows import batch, cold_disk, fronts, head, match, shared_memory, transfer

from kvgate.errors import KVGateError

KINDS = (transfer, head, fronts, match, batch, shared_memory, cold_disk)
ROUNDS, SECONDS = 5, 0.6
QUICK_ROUNDS, QUICK_SECONDS = 3, 0.15


def options() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    names = [name for kind in KINDS for name in kind.names()]
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description=summary,
        epilog=f"{details}\nRows: {', '.join(names)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="objects of 256 KiB and 4 MiB only and short rounds: less than two minutes"
    )
    parser.add_argument(
        "--only", action="append", metavar="ROW", help="measure this row; may have * and ?, and may be given again"
    )
    parser.add_argument(
        "--peers", nargs="*", choices=[name for name in PEERS if name not in ("raw", "kvgate")], metavar="PEER",
        help="beside raw and kvgate: any of %(choices)s; by default all",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help=f"of every row (default: {ROUNDS}, with --quick {QUICK_ROUNDS})")
    parser.add_argument("--seconds", type=float, help=f"of one turn (default: {SECONDS}, with --quick {QUICK_SECONDS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a PNG here; needs matplotlib")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE",
        help="also write a markdown table here; in a file that has a block of an earlier run, that is replaced",
    )  # fmt: skip
    chosen = parser.parse_args()
    for pattern in chosen.only or []:
        if not any(fnmatchcase(name, pattern) for name in names):
            parser.error(f"no row is called {pattern!r}; there are: {', '.join(names)}")
    if (chosen.rounds is not None and chosen.rounds < 1) or (chosen.seconds is not None and chosen.seconds <= 0):
        parser.error("--rounds and --seconds must be more than nothing")
    if chosen.plot and importlib.util.find_spec("matplotlib") is None:  # better said now than after minutes
        parser.error("--plot needs matplotlib: pip install -r loadtest/requirements.txt, or use `make bench`")
    return chosen


def main() -> None:
    chosen = options()
    signal.signal(signal.SIGTERM, _terminated)
    began = time.monotonic()
    load = os.getloadavg()[0]
    wanted = chosen.only or ["*"]
    peers = list(PEERS) if chosen.peers is None else chosen.peers
    with scratch() as name, reno() as congestion:
        try:
            driver = Driver(Path(name))
        except RuntimeError as error:
            raise SystemExit(f"bench.py: {error}") from error
        bed = Bed(
            folder=Path(name),
            driver=driver,
            seconds=chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS),
            rounds=chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS),
            quick=chosen.quick,
        )
        try:
            bed.start(peers)
            for kind in KINDS:
                try:
                    kind.measure(bed, lambda row: any(fnmatchcase(row, pattern) for pattern in wanted))
                except (RuntimeError, KVGateError, ImportError) as error:
                    bed.fail(kind.__name__, f"{type(error).__name__}: {error}")
        finally:
            bed.stop()
    run: dict[str, Any] = {
        "machine": machine.describe(congestion, load),
        "command": command(chosen),
        "rounds": bed.rounds,
        "seconds": bed.seconds,
        "skipped": bed.skipped,
        "took_s": round(time.monotonic() - began, 1),
    }
    for name, value in run["machine"].items():
        print(f"{name}: {value}")
    print(f"{bed.rounds} rounds of {bed.seconds:g} s; the run took {run['took_s']:.0f} s\n")
    print(report.table(bed.figures))
    print()
    print(report.verdict(bed.figures))
    for what, reason in bed.skipped.items():
        print(f"skipped {what}: {reason}")
    if chosen.json:
        report.write_json(chosen.json, run, bed.figures)
    if chosen.markdown:
        report.write_markdown(chosen.markdown, report.markdown(run, bed.figures))
    if chosen.plot:
        try:
            plot.write_plot(chosen.plot, bed.figures, f"{run['machine']['processor']}, {run['machine']['kernel']}")
        except ValueError as error:
            say(f"no plot: {error}")
    if bed.failed:
        raise SystemExit(1)


def command(chosen: argparse.Namespace) -> str:
    """The command line that measures the same again, without the files that it wrote."""
    words = ["python", "loadtest/bench.py", *(["--quick"] if chosen.quick else [])]
    words += [word for row in chosen.only or [] for word in ("--only", row)]
    words += [] if chosen.peers is None else ["--peers", *chosen.peers]
    words += [] if chosen.rounds is None else ["--rounds", str(chosen.rounds)]
    words += [] if chosen.seconds is None else ["--seconds", str(chosen.seconds)]
    return shlex.join(words)


def _terminated(*_: object) -> NoReturn:
    """As Ctrl-C does: servers are ended, and the system's settings put back, on the way out."""
    raise SystemExit(143)


if __name__ == "__main__":
    main()
