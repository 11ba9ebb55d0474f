"""A layout of two groups over memory that is not there, for what only looks at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine_adapters.nixl.layout import Group, Layout, Region

LAYERS = tuple(Region(f"layer.{n}", 0x10000 + n * 0x10000, 4096, 4096, 16) for n in range(3))
PARTS = tuple(Region(f"window.{n}", 0x80000 + n * 512, 512, 1024, 8) for n in range(2))
GROUP = Group("ab" * 32, "bfloat16", "NHD", 16, (0, 4), LAYERS)
WINDOW = Group("cd" * 32, "bfloat16", "NHD", 16, (0, 4), PARTS)
LAYOUT = Layout(0, 1, (GROUP, WINDOW))


def with_group(**changes: Any) -> Layout:
    """The layout with another first group."""
    return replace(LAYOUT, groups=(replace(GROUP, **changes), WINDOW))
