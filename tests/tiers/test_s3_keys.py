from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.tiers.base import Name
from kvgate.tiers.s3_keys import MAX_KEY_NBYTES, MAX_PART_NBYTES, SUFFIX, object_key

SAFE = re.compile(r"[A-Za-z0-9._@=/-]+")


def key_of(key: str, prefix: str = "kvgate") -> str:
    return object_key(prefix, Name("acme", "models", key))


def decoded(stored: str) -> str:
    """The key that a stored one was made of, unless it is a digest."""
    parts = stored.removesuffix(SUFFIX).split("/")[3:]
    return "/".join(["" if part == "=" else _unescaped(part) for part in parts])


def _unescaped(part: str) -> str:
    octets = re.sub(rb"=([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), part.encode())
    return octets.decode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        ("kv/" + "a" * 64 + "/" + "b" * 64, "kv/" + "a" * 64 + "/" + "b" * 64),
        ("vllm@Qwen_Qwen3-8B@1@0@abc", "vllm@Qwen_Qwen3-8B@1@0@abc"),
        ("a b+c%2F", "a=20b=2Bc=252F"),
        ("é", "=C3=A9"),
        ("a//b/", "a/=/b/="),
        ("../..", "=2E./=2E."),
        (".hidden", "=2Ehidden"),
        ("a.kvgate/b.kvgate", "a=2Ekvgate/b.kvgate"),
        ("a=b", "a=3Db"),
        ("\n\x00", "=0A=00"),
    ],
)
def test_keys_say_what_they_are(key: str, stored: str) -> None:
    assert key_of(key) == f"kvgate/acme/models/{stored}.kvgate"


def test_prefix_may_be_empty() -> None:
    assert key_of("k", "") == "acme/models/k.kvgate"


@pytest.mark.parametrize("key", ["a" * 201, "é" * 512, "a/" * 500 + "b", "d/" + "x" * 300 + "/e"])
def test_long_keys_lie_under_their_digest(key: str) -> None:
    assert re.fullmatch(r"kvgate/acme/models/=long/[0-9a-f]{64}\.kvgate", key_of(key))


@given(st.text(st.characters(codec=None), max_size=300))
def test_no_store_changes_a_key_and_each_can_be_told_from_every_other(key: str) -> None:
    stored = key_of(key)
    assert SAFE.fullmatch(stored)
    assert len(stored) <= MAX_KEY_NBYTES
    parts = stored.split("/")
    assert all(part and not part.startswith(".") and len(part) <= MAX_PART_NBYTES + len(SUFFIX) for part in parts)
    assert not any(part.endswith(SUFFIX) for part in parts[:-1])
    if "/=long/" not in stored:
        assert decoded(stored) == key


@given(st.lists(st.text("ab/=.é", max_size=6), min_size=2, max_size=20, unique=True))
def test_no_key_is_the_folder_of_another(keys: list[str]) -> None:
    stored = [key_of(key) for key in keys]
    assert len(set(stored)) == len(stored)
    assert not any(one.startswith(f"{other}/") for one in stored for other in stored)
