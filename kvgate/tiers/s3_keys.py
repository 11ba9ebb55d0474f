"""Where an object lies in the bucket: a key that says what it is, and that no store or proxy changes.

    <prefix>/<tenant>/<bucket>/<key>.kvgate

Of a key's parts between slashes, ASCII letters, digits and `._@-` stay as they are, and every other byte of their UTF-8
becomes `=` and two hex digits, as in quoted-printable. So do the dot at the beginning of a part, and that of `.kvgate`
at the end of one that is not the last. An empty part becomes `=`. What S3 would not take, with more than 1,024 bytes in
all, and what some stores would not, with more than 200 between two slashes, is `=long/<sha256 of the key>.kvgate`.

No two names share a key, and no key is another's folder, which stores that keep objects as files cannot have.
"""

from __future__ import annotations

import re
from hashlib import sha256

from kvgate.tiers.base import Name

SUFFIX = ".kvgate"
MAX_KEY_NBYTES = 1024
MAX_PART_NBYTES = 200

_ODD = re.compile(r"[^A-Za-z0-9._@-]+")


def object_key(prefix: str, name: Name) -> str:
    """The key of an object in the bucket: ASCII. `prefix` may be empty."""
    folder = folder_key(prefix) + f"{_part(name.tenant)}/{_part(name.bucket)}/"
    *parents, leaf = name.key.split("/")
    parts = [*map(_part, parents), _escape(leaf) + SUFFIX]
    key = folder + "/".join(parts)
    if len(key) > MAX_KEY_NBYTES or max(map(len, parts)) > MAX_PART_NBYTES:
        return f"{folder}=long/{sha256(name.key.encode('utf-8', 'surrogatepass')).hexdigest()}{SUFFIX}"
    return key


def folder_key(prefix: str) -> str:
    """What the key of every object begins with."""
    return f"{prefix}/" if prefix else ""


def _part(text: str) -> str:
    """A part that is not the last."""
    escaped = _escape(text)
    return f"{escaped.removesuffix(SUFFIX)}=2E{SUFFIX[1:]}" if escaped.endswith(SUFFIX) else escaped


def _escape(text: str) -> str:
    if not text:
        return "="
    escaped = _ODD.sub(_hex, text)
    return f"=2E{escaped[1:]}" if escaped.startswith(".") else escaped


def _hex(match: re.Match[str]) -> str:
    return "".join([f"={byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")])
