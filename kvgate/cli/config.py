"""`kvgate config`: check a configuration file, or print every key that one may have."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvgate import plugins
from kvgate.auth.tenants import Tenants
from kvgate.cli.reference import reference, resolved
from kvgate.config import build, load_yaml
from kvgate.errors import ConfigError
from kvgate.server.config import MEMORY_TIER, GatewayConfig
from kvgate.tiers.rules import TierRules

DESCRIPTION = """\
`check` reads a configuration file as `kvgate serve` would, and prints every value that holds then, given or default;
secrets are shown as ***. `reference` prints every key with its default and what it is for.
"""

EXAMPLES = """\
examples:
  kvgate config check conf/kvgate.yaml
  kvgate config check kvgate.yaml && systemctl restart kvgate
  kvgate config reference > kvgate.yaml    start from every default
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two things to do, and their arguments."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", help="check a configuration file", description="Check a configuration file.")
    check.add_argument("file", type=Path, metavar="FILE", help="the file")
    check.set_defaults(action=_check)
    printer = actions.add_parser("reference", help="print every key", description="Print every key and its default.")
    printer.set_defaults(action=_reference)


def run(options: argparse.Namespace) -> int:
    """Check or print. Raises ConfigError for a file that cannot be used."""
    options.action(options)
    return 0


def _check(options: argparse.Namespace) -> None:
    config = read_config(options.file)
    tiers = {each.name: (each.options, each.rules) for each in config.tier_options()}
    print(resolved(config, {"tiers": tiers}), end="")
    print(f"# {options.file} can be used.")


def _reference(_: argparse.Namespace) -> None:
    print(gateway_reference(), end="")


def gateway_reference() -> str:
    """Every key of a gateway's configuration, those of the installed tiers too."""
    installed = plugins.names("kvgate.tiers")
    names = [MEMORY_TIER, *(name for name in installed if name != MEMORY_TIER)]
    return reference(
        GatewayConfig, {"tiers": {name: (plugins.load("kvgate.tiers", name).Config, TierRules) for name in names}}
    )


def read_config(file: Path) -> GatewayConfig:
    """The configuration in a file, checked as far as it can be without opening anything.

    Raises ConfigError naming the file.
    """
    values = load_yaml(file)
    try:
        config = build(GatewayConfig, values)
        Tenants(config.tenants)
        plugins.load("kvgate.eviction", config.store.eviction)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return config
