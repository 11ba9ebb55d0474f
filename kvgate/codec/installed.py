"""The codecs that are installed, by name."""

from __future__ import annotations

import functools

from kvgate import plugins
from kvgate.codec.base import Codec

GROUP = "kvgate.codecs"


@functools.cache
def codec_named(name: str) -> Codec:
    """The codec of a name. Raises ConfigError when it is not installed."""
    codec: Codec = plugins.load(GROUP, name)()
    return codec


def installed_names() -> list[str]:
    """The names of all of them, sorted."""
    return plugins.names(GROUP)
