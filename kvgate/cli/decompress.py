"""`kvgate decompress`: have objects lie on disk as they were sent."""

from __future__ import annotations

import argparse

from kvgate.cli import job

DESCRIPTION = """\
Undo `kvgate compress`: have the copies of objects in disk tiers lie there as they were sent, so that reads cost no more
than the disk does. It needs the room of what is compressed now, and evicts other objects for it where there is none.
"""

EXAMPLES = """\
examples:
  kvgate decompress --recursive s3://chunks/kv/<space>/                 a model that is asked often again
  kvgate decompress --tier disk --recursive s3://chunks/                in one of several disk tiers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)
    parser.add_argument("--tier", metavar="NAME", help="the tier whose copies are meant (default: every one that can)")


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    return job.run(options, "decompress", tier=options.tier)
