"""`kvgate clear`: drop objects from one tier, or from all."""

from __future__ import annotations

import argparse

from kvgate.cli import job
from kvgate.errors import ConfigError

DESCRIPTION = """\
With --tier, drop the copies of objects in that tier where another tier has one too: no object is lost. With
--everywhere, delete the objects, but for those with a hard pin: there is no way back, deleted KV has to be computed
again. `kvgate rm` deletes as well, object by object from here.
"""

EXAMPLES = """\
examples:
  kvgate clear --tier host --recursive s3://chunks/kv/<space>/          out of memory; the disk keeps them
  kvgate clear --everywhere --recursive s3://chunks/kv/<space>/         delete one model's chunks
  kvgate clear --everywhere s3://chunks/ --space <space> --hashes-from prompt.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    job.add_arguments(parser)
    parser.add_argument("--tier", metavar="NAME", help="the tier that loses the copies")
    parser.add_argument("--everywhere", action="store_true", help="delete the objects")


def run(options: argparse.Namespace) -> int:
    """Begin, and wait unless told otherwise."""
    if options.everywhere == (options.tier is not None):
        raise ConfigError("one of --tier NAME and --everywhere is needed")
    return job.run(options, "clear", tier=options.tier)
