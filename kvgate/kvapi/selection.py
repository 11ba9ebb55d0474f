"""Which objects a call is about: chunks of a space, keys, or every key that begins with a prefix."""

from __future__ import annotations

from kvgate.chunk.key import ChunkKey
from kvgate.errors import InvalidArgument
from kvgate.kvapi.call import Context
from kvgate.kvapi.fields import Fields
from kvgate.store.values import Selection

FIELDS = ("bucket", "space", "hashes", "keys", "prefix")

_FORMS = ("hashes", "keys", "prefix")


def selection(context: Context, fields: Fields) -> Selection:
    """{bucket} with one of {space, hashes}, {keys} and {prefix}. Raises InvalidArgument."""
    bucket, most = fields.text("bucket"), context.config.max_hashes
    given = [name for name in _FORMS if fields.has(name)]
    if len(given) != 1:
        raise InvalidArgument(
            f"one of hashes (with space), keys and prefix is needed, got {' and '.join(given) or 'none'}"
        )
    if fields.has("space") and given != ["hashes"]:
        raise InvalidArgument("space: goes together with `hashes` only")
    if given == ["prefix"]:
        return Selection(bucket, None, fields.prefix("prefix"))
    if given == ["keys"]:
        return Selection(bucket, tuple(fields.texts("keys", most)))
    space = fields.hex_digest("space")
    return Selection(bucket, tuple([str(ChunkKey(space, each.hex())) for each in fields.hashes("hashes", most)]))
