"""Names: which object keys and bucket names kvgate accepts, and the grammar of keys under kv/.

    kv/<space>/<hash>           a chunk; both are 64 lower-case hex digits
    kv/<space>/manifest.json    the manifest of a space

Every other key is opaque: an ordinary S3 object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvgate.errors import InvalidBucketName, InvalidKey, KeyTooLong

MAX_KEY_NBYTES = 1024
KV_PREFIX = "kv/"
RESERVED_PREFIX = "_"
"""Buckets whose names begin so are the store's own: no client can name them."""

_HEX = re.compile(r"[0-9a-f]{64}")
_KV_KEY = re.compile(r"kv/([0-9a-f]{64})/(?:([0-9a-f]{64})|manifest\.json)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IPV4 = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
_AWS_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_AWS_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


@dataclass(frozen=True, slots=True, order=True)
class ChunkKey:
    """The key of a chunk; `str()` spells it. Raises InvalidKey unless both parts are 64 lower-case hex digits."""

    space: str
    hash: str

    def __post_init__(self) -> None:
        _check_hex("space", self.space)
        _check_hex("hash", self.hash)

    def __str__(self) -> str:
        return f"{KV_PREFIX}{self.space}/{self.hash}"


@dataclass(frozen=True, slots=True, order=True)
class ManifestKey:
    """The key of a space's manifest; `str()` spells it. Raises InvalidKey as `ChunkKey` does."""

    space: str

    def __post_init__(self) -> None:
        _check_hex("space", self.space)

    def __str__(self) -> str:
        return f"{KV_PREFIX}{self.space}/manifest.json"


def parse_key(key: str) -> ChunkKey | ManifestKey | None:
    """What a key under kv/ names; None for every other key, which is opaque.

    Raises InvalidKey for a key under kv/ outside the grammar. `check_key` holds the rules for opaque keys.
    """
    if not key.startswith(KV_PREFIX):
        return None
    match = _KV_KEY.fullmatch(key)
    if match is None:
        raise InvalidKey(
            f"keys under kv/ are kv/<space>/<hash> or kv/<space>/manifest.json, space and hash of 64 lower-case hex "
            f"digits each; got {key[:160]!r}"
        )
    return ChunkKey(match[1], match[2]) if match[2] else ManifestKey(match[1])


def check_key(key: str) -> None:
    """Accept any key that S3 accepts and that reaches us unchanged.

    Raises KeyTooLong, or InvalidKey for an empty key, one that is not UTF-8 or holds NUL, and one with a segment `.` or
    `..`, which HTTP clients and proxies rewrite on the way.
    """
    if not key:
        raise InvalidKey("an object key cannot be empty")
    try:
        nbytes = len(key) if key.isascii() else len(key.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidKey("an object key must be UTF-8") from None
    if nbytes > MAX_KEY_NBYTES:
        raise KeyTooLong(f"the key is {nbytes} bytes; at most {MAX_KEY_NBYTES} are accepted")
    if "\0" in key:
        raise InvalidKey("an object key cannot hold NUL")
    if "." in key and not {".", ".."}.isdisjoint(key.split("/")):
        raise InvalidKey("an object key cannot have a segment '.' or '..': HTTP clients and proxies rewrite such paths")


def split_owner(name: str) -> tuple[str, str]:
    """The tenant and the bucket of an owner-qualified name, `<tenant>_<bucket>`; no tenant for a plain name.

    A bucket's name holds no `_`, so there is one way to read it; a tenant's may.
    """
    owner, _, bucket = name.rpartition("_")
    return (owner, bucket) if owner else ("", name)


def check_bucket(name: str) -> None:
    """Accept a bucket name by the S3 rules. Raises InvalidBucketName naming the rule that it breaks.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    """
    if name.startswith(RESERVED_PREFIX):
        raise InvalidBucketName(f"bucket names that begin with '_' are reserved for kvgate itself; got {name[:64]!r}")
    if not _BUCKET.fullmatch(name):
        raise InvalidBucketName(
            "a bucket name is 3 to 63 lower-case letters, digits, dots and hyphens, and begins and ends with a letter "
            f"or digit; got {name[:64]!r}"
        )
    if ".." in name:
        raise InvalidBucketName(f"a bucket name cannot hold two dots in a row; got {name!r}")
    if _IPV4.fullmatch(name):
        raise InvalidBucketName(f"a bucket name cannot look like an IP address; got {name!r}")
    if name.startswith(_AWS_PREFIXES) or name.endswith(_AWS_SUFFIXES):
        raise InvalidBucketName(f"a bucket name with a prefix or suffix that S3 reserves; got {name!r}")


def _check_hex(what: str, value: str) -> None:
    if not _HEX.fullmatch(value):
        raise InvalidKey(f"{what} must be 64 lower-case hex digits, got {value[:80]!r}")
