"""What a key says of its object: whether another KV system wrote it, and whether other gateways may hold it as well."""

from __future__ import annotations

from kvgate import plugins
from kvgate.chunk.foreign.base import ForeignKey, KeyParser
from kvgate.chunk.key import KV_PREFIX, RESERVED_PREFIX


class Keys:
    """Reads the keys of kvgate and of every other KV system that is known. Synchronous and pure."""

    def __init__(self) -> None:
        parsers: list[KeyParser] = [
            plugins.load("kvgate.key_parsers", name)() for name in plugins.names("kvgate.key_parsers")
        ]
        self._parse = [parser.parse for parser in parsers]

    def foreign(self, bucket: str, key: str) -> ForeignKey | None:
        """What the key of another KV system says; None for every other one. Two microseconds."""
        if key.startswith(KV_PREFIX) or bucket.startswith(RESERVED_PREFIX):
            return None
        for parse in self._parse:
            if (foreign := parse(key)) is not None:
                return foreign
        return None

    def is_shared(self, bucket: str, key: str) -> bool:
        """Whether a key names the same bytes for every gateway, so that shared tiers may hold its object.

        That holds for what is named after its content: kvgate's own chunks and manifests, and the chunks of other KV
        systems. An object with any other key can be overwritten, and then two gateways would not agree.
        """
        if bucket.startswith(RESERVED_PREFIX):
            return False
        return key.startswith(KV_PREFIX) or self.foreign(bucket, key) is not None
