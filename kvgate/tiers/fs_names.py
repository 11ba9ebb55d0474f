"""Where an object lies below the folder of an `fs` tier: a path that a person can read, and that no other object has.

    objects/<tenant>/<bucket>/<folders of the key…>/=<2 hex digits>/<rest of the key>

Invariants
1. Two names have the same path only if they are the same name, also on a file system that takes upper and lower case,
   or Unicode's ways to write a character, for the same: every path is of lower-case ASCII.
2. A file is never where another name needs a folder: files lie in folders that begin with `=`; no part of a key does.
3. No part of a path has more than 255 bytes, and no path more than a few hundred behind the tier's folder.

The 256 folders `=00` to `=ff` share out what would lie in one: they are the first byte of the sha256 of the key.
"""

from __future__ import annotations

import hashlib
import re

from kvgate.tiers.base import Name

_MAX_PART_NBYTES = 200
_MAX_KEY_PATH_NBYTES = 700
_MAX_PARTS = 16
_WRITTEN_OTHERWISE = re.compile(rb"[^a-z0-9._-]|^\.|\.$")
"""A dot at an end hides a file, or is dropped by some file systems."""


def file_path(name: Name) -> str:
    """The path of the object's file, relative to the tier's folder.

    A key that would make a long or a deep path lies under the sha256 of it, `=` before it, in the bucket's folder.
    """
    key = name.key.encode()
    digest = hashlib.sha256(key)
    *folders, last = [part(each) for each in key.split(b"/")]
    if (
        len(folders) >= _MAX_PARTS
        or max(map(len, [*folders, last])) > _MAX_PART_NBYTES
        or (sum(map(len, folders)) + len(folders) + len(last) > _MAX_KEY_PATH_NBYTES)
    ):
        folders, last = [], f"={digest.hexdigest()}"
    place = ["objects", part(name.tenant.encode()), part(name.bucket.encode()), *folders]
    return "/".join([*place, f"={digest.digest()[0]:02x}", last])


def part(text: bytes) -> str:
    """One part of a path for one part of a name; no two have the same.

    a-z 0-9 . _ - stand for themselves, `!a` for A, `%e9` for a byte, and `%` alone for nothing.
    """
    return _WRITTEN_OTHERWISE.sub(_written, text).decode() or "%"


def _written(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return b"!" + byte.lower() if byte.isupper() else b"%%%02x" % byte[0]
