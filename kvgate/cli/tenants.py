"""`kvgate tenants`: what every tenant of a gateway uses and may use."""

from __future__ import annotations

import argparse
import json

from kvgate.cli import operator, usage
from kvgate.errors import ConfigError

DESCRIPTION = """\
Say what every tenant has in every tier, what it may have, and how often it was refused. It asks the operator's port,
which needs no key pair, and never shows a secret. A tenant sees its own numbers with `kvgate stat`.
"""

EXAMPLES = """\
examples:
  kvgate tenants                    a table for each tenant
  kvgate tenants acme               for one
  kvgate tenants --json | jq '.tenants | map_values(.nbytes)'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.add_argument("tenant", nargs="?", help="the tenant to show (default: all of them)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    operator.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print what the gateway says."""
    tenants = operator.ask(*operator.address_of(options.admin_url), "/tenants")["tenants"]
    if options.tenant is not None:
        if options.tenant not in tenants:
            raise ConfigError(f"there is no tenant of this name; there are: {', '.join(sorted(tenants))}")
        tenants = {options.tenant: tenants[options.tenant]}
    if options.json:
        print(json.dumps({"tenants": tenants}, indent=2))
    else:
        for name, stats in tenants.items():
            usage.print_stats(stats, name)
    return 0
