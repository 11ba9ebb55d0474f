"""`kvgate copy`: give objects a copy in another tier."""

from __future__ import annotations

import argparse

from kvgate.cli import job

DESCRIPTION = """\
Give objects a copy in a tier, beside those that they have. Into a shared tier, that is how other gateways get them;
into a private one, how a read of them becomes fast.
"""

EXAMPLES = """\
examples:
  kvgate copy --tier s3 --recursive s3://chunks/kv/<space>/             so that other gateways have the model
  kvgate copy --tier disk s3://chunks/report.txt
  kvgate copy --tier s3 s3://chunks/ --space <space> --hashes-from prompt.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)
    parser.add_argument("--tier", metavar="NAME", required=True, help="the tier that gets the copies")


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    return job.run(options, "copy", tier=options.tier)
