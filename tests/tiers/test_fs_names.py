from __future__ import annotations

import hashlib
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.tiers.base import Name
from kvgate.tiers.fs_names import file_path, part

NAMES = st.builds(
    Name,
    st.sampled_from(["acme", "a.b_c-d"]),
    st.sampled_from(["bucket", "b.c"]),
    st.one_of(
        st.text(st.sampled_from("aAbB/._-!%= é\u00c9\u0301\U0001f600"), min_size=1, max_size=80),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=250),
        st.integers(200, 1024).map(lambda count: "aB" * (count // 2)),
        st.integers(1, 500).map(lambda count: "a/" * count),
    ),
)


def test_chunk_is_found_by_a_person() -> None:
    space, chunk = "9f" * 32, "60" * 32
    key = f"kv/{space}/{chunk}"
    fan = hashlib.sha256(key.encode()).hexdigest()[:2]
    assert file_path(Name("acme", "chunks", key)) == f"objects/acme/chunks/kv/{space}/={fan}/{chunk}"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("meta-llama", "meta-llama"),
        ("Llama-3.1", "!llama-3.1"),
        ("a b@c", "a%20b%40c"),
        ("é", "%c3%a9"),
        ("", "%"),
        (".hidden", "%2ehidden"),
        ("end.", "end%2e"),
        ("..", "%2e%2e"),
        ("!a%", "%21a%25"),
    ],
)
def test_parts(text: str, written: str) -> None:
    assert part(text.encode()) == written


@given(st.binary(max_size=60).filter(lambda text: b"/" not in text))
def test_part_says_which_text_it_stands_for(text: bytes) -> None:
    """So no two texts have the same part."""

    def read(match: re.Match[str]) -> str:
        return match[1].upper() if match[1] else chr(int(match[2], 16))

    written = part(text)
    assert re.sub("!([a-z])|%([0-9a-f]{2})", read, "" if written == "%" else written).encode("latin-1") == text


@given(NAMES)
def test_path_is_lower_case_ascii_with_short_parts(name: Name) -> None:
    path = file_path(name)
    assert path.isascii()
    assert path == path.casefold() == unicodedata.normalize("NFD", path)
    assert len(path) < 1000
    parts = path.split("/")
    assert all(0 < len(each) <= 255 and each not in (".", "..") for each in parts)
    assert [each[0] == "=" for each in parts[:-1]] == [False] * (len(parts) - 2) + [True]


@given(NAMES, NAMES)
def test_different_names_have_different_paths_and_none_is_in_the_way_of_another(one: Name, other: Name) -> None:
    if one != other:
        first, second = file_path(one), file_path(other)
        assert first != second
        assert not second.startswith(first + "/")


def test_a_million_chunks_of_a_space_lie_in_folders_of_thousands() -> None:
    keys = (f"kv/{'ab' * 32}/{hashlib.sha256(number.to_bytes(4, 'big')).hexdigest()}" for number in range(20_000))
    folders: dict[str, int] = {}
    for key in keys:
        folder = file_path(Name("t", "b", key)).rpartition("/")[0]
        folders[folder] = folders.get(folder, 0) + 1
    assert len(folders) == 256
    assert max(folders.values()) * 50 < 10_000  # of a million; a fair share is 3,906
