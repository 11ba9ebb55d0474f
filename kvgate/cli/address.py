"""`s3://bucket/key`, as the verbs take it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

_SCHEME = "s3://"


@dataclass(frozen=True)
class Address:
    """A bucket, and a key or a prefix of keys in it; the key is taken as it is written, unescaped."""

    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"


def bucket_address(text: str) -> Address:
    """A bucket with or without a key. Raises argparse's error, which names the form that is accepted."""
    bucket, _, key = text.removeprefix(_SCHEME).partition("/")
    if not text.startswith(_SCHEME) or not bucket:
        raise argparse.ArgumentTypeError(f"expected s3://BUCKET or s3://BUCKET/KEY, got {text!r}")
    return Address(bucket, key)


def object_address(text: str) -> Address:
    """A bucket with a key. Raises argparse's error, which names the form that is accepted."""
    address = bucket_address(text)
    if not address.key:
        raise argparse.ArgumentTypeError(f"expected s3://BUCKET/KEY, got {text!r}, which names no object")
    return address
