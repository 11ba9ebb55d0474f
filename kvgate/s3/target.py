"""What a request addresses: bucket, key and query parameters, decoded strictly from the raw request target.

Addressing is path-style, `/bucket/key`, unless the listener or the host name gives the bucket; then the whole path is
the key. Everything after the first slash of a key is part of it, `//` and all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from kvgate.chunk.key import MAX_KEY_NBYTES, RESERVED_PREFIX, check_bucket
from kvgate.errors import InvalidArgument, InvalidBucketName, InvalidKey, InvalidRequest, KeyTooLong

MAX_PARAMETERS = 64

_PORT = re.compile(r":[0-9]*\Z")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Target(NamedTuple):
    """An empty `key` addresses the bucket, an empty `bucket` the service."""

    bucket: str
    key: str
    query: Mapping[str, str]


def host_bucket(host: str, domains: Iterable[str]) -> str:
    """The bucket that a Host header names under one of the gateway's own domains; empty for path-style addressing.

    domains: lower case, the longest first where one ends with another
    """
    name = _PORT.sub("", host).lower()
    domain = next((domain for domain in domains if f".{name}".endswith(f".{domain}")), name)
    return name[: -len(domain) - 1]


def parse_target(raw_path: str, raw_query: str, bucket: str = "") -> Target:
    """The target of a request; with a `bucket`, which the request came to already, the path holds only the key.

    Raises InvalidBucketName, InvalidKey, KeyTooLong, InvalidArgument for the query, or InvalidRequest.
    """
    if not raw_path.startswith("/"):
        raise InvalidRequest("the request target must be a path")
    raw_key = raw_path[1:]
    plain = _is_plain(raw_path)
    if not bucket:
        raw_bucket, _, raw_key = raw_key.partition("/")
        try:
            bucket = raw_bucket if plain else decode(raw_bucket)
        except ValueError as error:
            raise InvalidBucketName(f"the bucket name in the path {error}") from None
    if raw_key and not bucket:
        raise InvalidBucketName("the path has an empty bucket name")
    if bucket.startswith(RESERVED_PREFIX):
        check_bucket(bucket)
    try:
        key = raw_key if plain else decode(raw_key)
    except ValueError as error:
        raise InvalidKey(f"the key in the path {error}") from None
    nbytes = len(key) if plain else len(key.encode())
    if nbytes > MAX_KEY_NBYTES:
        raise KeyTooLong(f"the key is {nbytes} bytes; at most {MAX_KEY_NBYTES} are accepted")
    return Target(bucket, key, parse_query(raw_query) if raw_query else {})


def parse_query(raw_query: str) -> dict[str, str]:
    """The parameters of a query, each at most once. Raises InvalidArgument."""
    query: dict[str, str] = {}
    if not raw_query:
        return query
    parameters = raw_query.split("&", MAX_PARAMETERS)
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidArgument(f"the query has over {MAX_PARAMETERS} parameters")
    for parameter in parameters:
        raw_name, _, raw_value = parameter.partition("=")
        try:
            name, value = decode(raw_name), decode(raw_value)
        except ValueError as error:
            raise InvalidArgument(f"a parameter of the query {error}") from None
        if name in query:
            raise InvalidArgument(f"the query parameter {name[:64]!r} is given twice")
        if name:
            query[name] = value
    return query


def _is_plain(raw: str) -> bool:
    """Whether it means itself."""
    return "%" not in raw and raw.isascii()


def decode(raw: str) -> str:
    """Percent-decoded text, in which "+" is a plus. Raises ValueError that continues a sentence on what `raw` is."""
    if _is_plain(raw):
        return raw
    if _BROKEN_ESCAPE.search(raw):
        raise ValueError("has a '%' that is not followed by two hex digits")
    try:
        return unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 when percent-decoded") from None
