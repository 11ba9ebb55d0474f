"""`kvgate move`: have objects lie in another tier."""

from __future__ import annotations

import argparse

from kvgate.cli import job

DESCRIPTION = """\
Give objects a copy in a tier, and drop the ones that they have in --from, or in every other tier that is this gateway's
own. A copy is dropped only once the new one is complete; what is in use keeps it, and is named at the end.
"""

EXAMPLES = """\
examples:
  kvgate move --tier s3 --recursive s3://chunks/kv/<space>/             a model that is not used now makes room
  kvgate move --tier cold --from disk --recursive s3://chunks/logs/     between two tiers
  kvgate move --tier disk s3://chunks/report.txt                        out of memory, onto the disk
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)
    parser.add_argument("--tier", metavar="NAME", required=True, help="the tier that gets the copies")
    parser.add_argument("--from", metavar="NAME", dest="source", help="the tier that they leave")


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    return job.run(options, "move", tier=options.tier, source=options.source)
