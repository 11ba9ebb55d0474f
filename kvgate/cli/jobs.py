"""`kvgate jobs`: what takes long in the gateway, how far it is, and how it ended."""

from __future__ import annotations

import argparse
import json
import time

from kvgate.cli import connection, job
from kvgate.cli.terminal import human_duration, human_size, printable
from kvgate.client.values import Job
from kvgate.errors import ConfigError

DESCRIPTION = """\
List the jobs of the tenant, the newest first, or say of one how far it is or how it ended, and of which objects it does
not hold. The gateway remembers them for store.jobs.keep_for, also across restarts.
"""

EXAMPLES = """\
examples:
  kvgate jobs                              all of them
  kvgate jobs 5d1f0c8a3b7e4269             one; --wait waits for its end
  kvgate jobs --cancel 5d1f0c8a3b7e4269    end it where it is
  kvgate jobs --json | jq -r '.[] | select(.state == "incomplete") | .id'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("id", nargs="?", metavar="ID", help="one job")
    parser.add_argument("--cancel", action="store_true", help="end the job; what it has done stays done")
    parser.add_argument("--wait", action="store_true", help="wait for the end of the job")
    parser.add_argument("--json", action="store_true", help="print JSON: one object for a job, a list for all")
    connection.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print; of a job that has ended otherwise than done or cancelled here, 1."""
    if options.id is None and (options.cancel or options.wait):
        raise ConfigError("--cancel and --wait need the ID of a job")
    with connection.connect(options) as client:
        if options.id is None:
            _list([*client.jobs()], as_json=options.json)
            return 0
        found = client.cancel_job(options.id) if options.cancel else client.job(options.id)
        if options.wait:
            found = job.watch(client, found)
    job.show(found, as_json=options.json)
    return int(found.has_ended and found.state != "done" and not (options.cancel and found.state == "cancelled"))


def _list(jobs: list[Job], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([job.members(each) for each in jobs], indent=2))
        return
    now_ms = time.time_ns() // 1_000_000
    for each in jobs:
        age = human_duration((now_ms - each.created_ms) / 1000)
        about = f"{each.selected} named" if each.prefix is None else f"s3://{each.bucket}/{each.prefix}"
        done = f"{each.done} of {each.total} objects, {human_size(each.done_nbytes)}"
        print(f"{each.id}  {age + ' ago':>10}  {each.kind:8}  {each.state:11}  {done}  {printable(about)}")
    print(f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}")
