"""Addresses are taken as they are written, and refused with the form that is accepted."""

from __future__ import annotations

import argparse

import pytest

from kvgate.cli.address import Address, bucket_address, object_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://kv", Address("kv")),
        ("s3://kv/", Address("kv")),
        ("s3://kv/a/b%20c?d", Address("kv", "a/b%20c?d")),
        ("s3://kv//a", Address("kv", "/a")),
    ],
)
def test_a_bucket_and_a_key(text: str, address: Address) -> None:
    assert bucket_address(text) == address


@pytest.mark.parametrize("text", ["kv", "kv/a", "http://kv/a", "s3://", "s3:///a", ""])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected s3://BUCKET or s3://BUCKET/KEY"):
        bucket_address(text)


def test_an_object_needs_a_key() -> None:
    assert object_address("s3://kv/a") == Address("kv", "a")
    with pytest.raises(argparse.ArgumentTypeError, match="names no object"):
        object_address("s3://kv/")
