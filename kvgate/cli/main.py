"""The `kvgate` command: finds the verb, runs it, and says what went wrong in one line.

Exit status: 0 done, 1 failed, 2 a command line or a configuration that cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from kvgate import __version__
from kvgate.errors import ConfigError, KVGateError

VERBS = {
    "serve": "run the gateway",
    "ls": "list buckets, or the objects of one",
    "stat": "say what one object is, or what you have of the gateway",
    "tenants": "say what every tenant has of the gateway",
    "rm": "delete one object, or all under a prefix",
    "explain": "say where chunks or objects are, or why they are not here",
    "prefetch": "bring objects to memory before they are asked for",
    "copy": "give objects a copy in another tier",
    "move": "have objects lie in another tier",
    "clear": "drop objects from one tier, or from all",
    "pin": "keep objects from eviction",
    "unpin": "let objects be evicted again",
    "compress": "have objects take fewer bytes on disk",
    "decompress": "have objects lie on disk as they were sent",
    "jobs": "say what takes long in the gateway, and how it ended",
    "scrub": "say what the scrubber has found, or begin a pass",
    "record": "write down what a gateway is asked for, as a trace of numbers",
    "replay": "say what eviction policies would make of a trace of requests",
    "config": "check a configuration file, or print every key",
    "doctor": "say what this machine offers a gateway, and what to mend",
}
"""Every verb and what it does. The code of a verb is the module `kvgate.cli.<verb>`."""

_EPILOG = """\
a first gateway, on this machine only:
  kvgate serve                             prints its URL and a key pair at the first start
  kvgate ls                                buckets
  kvgate ls s3://chunks/                   what is in one
  kvgate doctor                            is this machine fit for it?

`kvgate VERB --help` shows a verb's options and examples. The documentation is in docs/ of the source.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process, and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser(arguments).parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(error, 2)
    except KVGateError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `kvgate ls | head`: nobody reads on, and the exit must not try to flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _fail(error: Exception, status: int) -> int:
    print(f"kvgate: {error}", file=sys.stderr)
    return status


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of every verb's name, and of the options of the one verb that `arguments` name."""
    parser = argparse.ArgumentParser(
        prog="kvgate",
        description="An S3-compatible gateway that keeps the attention keys and values of LLM engines.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kvgate {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    for verb, summary in VERBS.items():
        subparser = verbs.add_parser(
            verb, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if verb == named:
            module = importlib.import_module(f"kvgate.cli.{verb}")
            subparser.description, subparser.epilog = module.DESCRIPTION, module.EXAMPLES
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser
