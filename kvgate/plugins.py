"""Entry points: the one door through which tiers, eviction policies and codecs enter, the built-in ones too."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from kvgate.errors import ConfigError


def load(group: str, name: str) -> Any:
    """The object registered as `name` in the entry-point group `group` (for example ``kvgate.tiers``).

    Raises ConfigError naming the installed choices when there is none.
    """
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        raise ConfigError(f"no plug-in {name!r} in {group}; installed: {', '.join(sorted(found)) or 'none'}")
    return found[name].load()
