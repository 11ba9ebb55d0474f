"""Entry points: the one door through which tiers, eviction policies and codecs enter, the built-in ones too."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from kvgate.errors import ConfigError


def load(group: str, name: str) -> Any:
    """The object registered as `name` in the entry-point group `group` (for example ``kvgate.tiers``).

    Raises ConfigError when there is none (naming the installed choices), when two packages offer different objects
    under the name, and when the one there is cannot be imported.
    """
    points = [point for point in entry_points(group=group) if point.name == name]
    if not points:
        raise ConfigError(f"no plug-in {name!r} in {group}; installed: {', '.join(names(group)) or 'none'}")
    if len(offers := sorted({point.value for point in points})) > 1:
        raise ConfigError(f"plug-in {name!r} in {group} is offered twice, by {' and '.join(offers)}; uninstall one")
    try:
        return points[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"plug-in {name!r} in {group} ({points[0].value}) cannot be loaded: {error}") from error


def names(group: str) -> list[str]:
    """The names installed in the entry-point group `group`, sorted."""
    return sorted({point.name for point in entry_points(group=group)})
