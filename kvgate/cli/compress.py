"""`kvgate compress`: have objects take fewer bytes on disk, where they lie."""

from __future__ import annotations

import argparse

from kvgate.cli import job

DESCRIPTION = """\
Have the copies of objects in disk tiers take fewer bytes, for objects that are seldom read: each read from disk then
costs the time to decompress them. Clients see no difference, and every byte is verified as before. What is in use, or
would take hardly less room, stays as it is. Of 16-bit KV it saves about 30 %.
"""

EXAMPLES = """\
examples:
  kvgate compress --recursive s3://chunks/kv/<space>/                   the chunks of a model that is seldom asked
  kvgate compress --tier disk --recursive s3://chunks/                  in one of several disk tiers
  kvgate compress --codec zstd --recursive s3://chunks/logs/            not looked at which codec suits them
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)
    parser.add_argument("--tier", metavar="NAME", help="the tier whose copies are meant (default: every one that can)")
    parser.add_argument(
        "--codec",
        metavar="NAME",
        help="zstd, or zstd-split for numbers of 16 bits (default: what makes the beginning of an object shorter)",
    )


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    return job.run(options, "compress", tier=options.tier, codec=options.codec)
