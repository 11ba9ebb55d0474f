"""Keys of other KV systems: every parser gives something bounded or nothing, and the same for no two keys."""

from __future__ import annotations

from fuzz.draw import Draw, spliced
from fuzz.properties import must
from fuzz.targets.base import Target
from kvgate import plugins
from kvgate.chunk.foreign.base import MAX_MODEL_CHARS, KeyParser

_PARSERS: list[KeyParser] = [plugins.load("kvgate.key_parsers", name)() for name in plugins.names("kvgate.key_parsers")]
_HASH = "0123456789abcdef" * 4
_GOOD = (
    *("meta-llama_Llama-3@2@0@-520fcff2946d4d52@bfloat16", f"acme/llama@01000100@0@{_HASH}@salt"),
    *(f"m@1@0@{_HASH}@half@tag%value", f"p/llama_0123456789ab_r0/012/34_g1/{_HASH}.bin", "17", _HASH),
    *(f"/llama_0123456789ab_r0/012/34_g1/{_HASH}.bin", f"{_HASH}_llama_0_1_k", f"{_HASH}_0_k"),
)
_WORDS = ("@", "%", "/", "_", "-", "0", "00", "\u0660", "\x00", "\n", "é", "\udc80", "a" * 300, ".bin", "@@", "A", "//")


def check(data: bytes) -> None:
    draw = Draw(data)
    key = spliced(draw, draw.pick(_GOOD), _WORDS)
    other = spliced(draw, key, _WORDS)
    for parser in _PARSERS:
        found = parser.parse(key)
        if found is None:
            continue
        must(len(found.model) <= MAX_MODEL_CHARS and found.hash, "a key without bounds")
        must(found.model.isprintable() or not found.model.isascii(), "a model that is no label")
        must(other == key or parser.parse(other) != found, f"{key!r} and {other!r} are taken for one")


TARGETS = (Target("keys", 20_000, check),)
