"""`kvgate pin`: keep objects from eviction."""

from __future__ import annotations

import argparse

from kvgate.cli import job
from kvgate.config import parse_seconds

DESCRIPTION = """\
Keep objects from eviction: always, or with --soft as long as anything else can go. With --recursive the prefix is
pinned, for objects to come as well. Hard pins take at most store.retention.pinned_share; what is over it is named.
"""

EXAMPLES = """\
examples:
  kvgate pin s3://chunks/ --space <space> --hashes-from system-prompt.txt    the chunks of a prompt that all share
  kvgate pin --for 7d --recursive s3://chunks/kv/<space>/                    a model, for a week
  kvgate pin --soft --recursive s3://chunks/kv/<space>/                      rather this one than others
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)
    parser.add_argument("--soft", action="store_true", help="evict them when nothing else of the tenant's can go")
    parser.add_argument("--for", metavar="TIME", type=_seconds, dest="pin_s", help="such as 90m or 7d; else no end")


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    return job.run(options, "pin", pin="soft" if options.soft else "hard", pin_s=options.pin_s)


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
