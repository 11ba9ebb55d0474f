from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.key import ChunkKey, ManifestKey, check_bucket, check_key, parse_key
from kvgate.errors import InvalidBucketName, InvalidKey, KeyTooLong

SPACE, HASH = "0123456789abcdef" * 4, "f" * 64


def test_chunk_and_manifest_keys_round_trip() -> None:
    for key in (ChunkKey(SPACE, HASH), ManifestKey(SPACE)):
        assert parse_key(str(key)) == key
        check_key(str(key))
    assert str(ChunkKey(SPACE, HASH)) == f"kv/{SPACE}/{HASH}"
    assert str(ManifestKey(SPACE)) == f"kv/{SPACE}/manifest.json"


@pytest.mark.parametrize("key", ["a", "kv", "KV/x", "/kv/x", "x/kv/y", "kvx/y", "models/a b/ü", "a//b", "vllm@1@0@abc"])
def test_keys_outside_kv_are_opaque(key: str) -> None:
    check_key(key)
    assert parse_key(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "kv/",
        "kv//",
        f"kv/{SPACE}",
        f"kv/{SPACE}/",
        f"kv//{SPACE}/{HASH}",
        f"kv/{SPACE}//{HASH}",
        f"kv/{SPACE}/{HASH}/",
        f"kv/{SPACE}/{HASH}\n",
        f"kv/{SPACE}/{HASH.upper()}",
        f"kv/{SPACE}/{HASH[1:]}",
        f"kv/{SPACE}/{HASH}0",
        f"kv/{SPACE[1:]}g/{HASH}",
        f"kv/{SPACE}/manifest.json.bak",
        f"kv/{SPACE}/Manifest.json",
        f"kv/{SPACE}/manifestxjson",
        f"kv/{SPACE}/../{HASH}",
        f"kv/{SPACE[:-1]}\u0663/{HASH}",
    ],
)
def test_a_key_under_kv_outside_the_grammar_is_refused(key: str) -> None:
    with pytest.raises(InvalidKey, match=r"kv/<space>/<hash> or kv/<space>/manifest\.json"):
        parse_key(key)


@given(st.text(max_size=140) | st.text("0123456789abcdef/kv", max_size=140).map("kv/".__add__))
def test_a_parsed_key_spells_itself(key: str) -> None:
    try:
        parsed = parse_key(key)
    except InvalidKey:
        assert key.startswith("kv/")
    else:
        assert parsed is None or str(parsed) == key


def test_key_parts_must_be_hashes() -> None:
    for make in (lambda: ChunkKey("x", HASH), lambda: ChunkKey(SPACE, HASH + "\n"), lambda: ManifestKey(SPACE.upper())):
        with pytest.raises(InvalidKey, match="64 lower-case hex digits"):
            make()


def test_a_key_of_1024_bytes_is_the_longest() -> None:
    check_key("k" * 1024)
    check_key("ü" * 512)
    for key in ("k" * 1025, "ü" * 512 + "k"):
        with pytest.raises(KeyTooLong, match="1025 bytes"):
            check_key(key)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("a\ud800", "UTF-8"),
        (".", "segment"),
        ("..", "segment"),
        ("a/./b", "segment"),
        ("../a", "segment"),
        ("a/..", "segment"),
    ],
)
def test_a_key_that_would_not_reach_us_unchanged_is_refused(key: str, reason: str) -> None:
    with pytest.raises(InvalidKey, match=reason) as caught:
        check_key(key)
    assert not isinstance(caught.value, KeyTooLong)


@pytest.mark.parametrize("key", ["a/...", ".a", "a.", "a/.b/..c", "/", "//", "a\tb\n", "\U0001f600", " "])
def test_odd_keys_that_s3_accepts_are_accepted(key: str) -> None:
    check_key(key)


@pytest.mark.parametrize("name", ["abc", "a" * 63, "my-bucket.v2", "1-2-3", "192.168.1", "a.192.168.5.4", "a--b"])
def test_bucket_names_by_the_s3_rules_are_accepted(name: str) -> None:
    check_bucket(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "3 to 63"),
        ("ab", "3 to 63"),
        ("a" * 64, "3 to 63"),
        ("Bucket", "lower-case"),
        ("my_bucket", "lower-case"),
        ("bücket", "lower-case"),
        ("abc\n", "lower-case"),
        ("a/b", "lower-case"),
        ("-abc", "begins and ends"),
        ("abc.", "begins and ends"),
        ("a..b", "two dots"),
        ("192.168.5.4", "IP address"),
        ("999.999.999.999", "IP address"),
        ("xn--bucket", "S3 reserves"),
        ("bucket-s3alias", "S3 reserves"),
        ("_kvgate", "reserved for kvgate"),
        ("_", "reserved for kvgate"),
    ],
)
def test_a_bucket_name_outside_the_rules_is_refused_with_the_rule(name: str, reason: str) -> None:
    with pytest.raises(InvalidBucketName, match=reason):
        check_bucket(name)
