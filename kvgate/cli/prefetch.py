"""`kvgate prefetch`: bring objects to memory before they are asked for."""

from __future__ import annotations

import argparse

from kvgate.cli import job

DESCRIPTION = """\
Bring objects up to memory, or with --tier to a tier on the way there, so that the first request for them does not wait
for a slow tier. What lies there or faster already is left as it is. One job fills at most store.jobs.memory_share of
memory; what it does not bring is named at its end.
"""

EXAMPLES = """\
examples:
  kvgate prefetch --recursive s3://chunks/kv/<space>/                   the chunks of one model
  kvgate prefetch s3://chunks/ --space <space> --hashes-from prompt.txt those of one prompt
  kvgate prefetch --tier disk --recursive s3://chunks/kv/<space>/       from remote tiers to the disk
  kvgate prefetch --no-wait --recursive s3://chunks/                    begin, and come back at once
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)
    parser.add_argument("--tier", metavar="NAME", help="the tier to bring them to (default: memory)")


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    return job.run(options, "prefetch", tier=options.tier)
