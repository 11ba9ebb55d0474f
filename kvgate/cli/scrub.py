"""`kvgate scrub`: what the scrubber has found, or a pass that begins now."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from kvgate.cli import operator
from kvgate.cli.terminal import Progress, human_duration, human_size, printable
from kvgate.errors import ConfigError

DESCRIPTION = """\
Say what the scrubber does and what its last pass found: copies whose bytes do not match their digest, copies that are
gone, and files that are no copy of anything. It asks the operator's port, which needs no key pair.
"""

EXAMPLES = """\
examples:
  kvgate scrub                      what goes on, and what the last pass found
  kvgate scrub --start              begin a pass now, and come back at once
  kvgate scrub --start --wait       begin one, show how far it is, and say what it found; 1 when copies were bad
  kvgate scrub --json | jq .last
"""

_PATH = "/scrub"
_ASK_EVERY_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("--start", action="store_true", help="begin a pass now")
    parser.add_argument("--wait", action="store_true", help="wait until the pass that goes on has ended")
    parser.add_argument("--json", action="store_true", help="print the whole report as one JSON object")
    operator.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report; with --wait 1 when the pass found bad copies."""
    host, port = operator.address_of(options.admin_url)
    report = operator.ask(host, port, _PATH, "POST" if options.start else "GET")
    if options.start and report["state"] == "off":
        raise ConfigError("the scrubber is off: set store.scrub.rate")
    if options.wait:
        report = _wait(host, port, report, started=options.start)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return int(bool(options.wait and report["last"] and report["last"]["corrupt"] + report["last"]["gone"]))


def _wait(host: str, port: int, report: dict[str, Any], *, started: bool) -> dict[str, Any]:
    """The report after the pass that goes on or, when one was asked for, has yet to begin."""
    before = report["last"]
    progress = Progress()
    try:
        while report["running"] is not None or (started and report["last"] == before):
            if (running := report["running"]) is not None:
                nbytes, total_nbytes = running["nbytes"], max(1, running["total_nbytes"])
                progress.say(
                    f"{min(1.0, nbytes / total_nbytes):4.0%}  {human_size(nbytes)} of {human_size(total_nbytes)}, "
                    f"{running['copies']} copies verified, {running['corrupt'] + running['gone']} bad"
                )
            time.sleep(_ASK_EVERY_S)
            report = operator.ask(host, port, _PATH)
    finally:
        progress.end()
    return report


def _print(report: dict[str, Any]) -> None:
    tiers = ", ".join(report["tiers"])
    if report["state"] == "off":
        print("The scrubber is off (store.scrub.rate is 0).")
    else:
        every = f"every {human_duration(report['interval_s'])}" if report["interval_s"] else "only when asked"
        print(
            f"The scrubber is {report['state']}: {tiers}, at {human_size(report['rate'])}/s, {every}; a pass takes "
            f"about {human_duration(report['pass_s'])} when nothing delays it."
        )
    if report["next_ms"] is not None:
        left_s = report["next_ms"] / 1000 - time.time()
        print(f"The next pass begins {'now' if left_s <= 0 else f'in {human_duration(left_s)}'}.")
    for name, words in (("running", "This pass"), ("last", "The last pass")):
        if report[name] is not None:
            _print_pass(words, report[name])
    for tier, kept in report["quarantine"].items():
        if kept["files"]:
            print(f"Kept in the quarantine of {printable(tier)}: {kept['files']} files, {human_size(kept['nbytes'])}.")


def _print_pass(words: str, made: dict[str, Any]) -> None:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made["began_ms"] / 1000))
    took = f", took {human_duration((made['ended_ms'] - made['began_ms']) / 1000)}" if made["ended_ms"] else ""
    print(f"{words} began {began}{took}: {made['copies']} copies verified, {human_size(made['nbytes'])}.")
    found = {name: made[name] for name in ("corrupt", "gone", "unread", "repaired", "elsewhere", "lost", "strays")}
    print("  " + ", ".join(f"{count} {name}" for name, count in found.items()))
    for each in made["findings"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["at_ms"] / 1000))
        print(printable(f"  {at}  {each['kind']} {each['hash']} in {each['tier']}: {each['what']}, {each['outcome']}"))
