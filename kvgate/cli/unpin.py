"""`kvgate unpin`: let objects be evicted again."""

from __future__ import annotations

import argparse

from kvgate.cli import job

DESCRIPTION = """\
Take the pins of objects away, so that they are evicted when their turn comes. With --recursive that of the prefix, and
those of every key under it. What the pin of a shorter prefix still keeps is named.
"""

EXAMPLES = """\
examples:
  kvgate unpin s3://chunks/report.txt
  kvgate unpin --recursive s3://chunks/kv/<space>/
  kvgate unpin --recursive s3://chunks/                   no pin in this bucket any more
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    return job.run(options, "unpin")
