from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.glob import Glob

FEW = st.text(alphabet="ab?*\n", max_size=12)


@given(FEW, FEW)
def test_a_glob_matches_what_the_same_regular_expression_does(pattern: str, text: str) -> None:
    as_regex = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    assert Glob(pattern).matches(text) is (re.fullmatch(as_regex, text, re.DOTALL) is not None)


@given(st.text(max_size=60))
def test_a_text_matches_itself_and_wildcards_in_its_place(text: str) -> None:
    for pattern in (text, "*", "?" * len(text), f"*{text}", f"{text}*", f"**{text}**"):
        assert Glob(pattern).matches(text)
    assert "*" in text or not Glob(text + "?").matches(text)


def test_case_counts_and_a_character_outside_ascii_is_one() -> None:
    assert not Glob("KV/*").matches("kv/a")
    assert Glob("?/x").matches("é/x")
    assert Glob("?/x").matches("\N{GRINNING FACE}/x")
    assert not Glob("??/x").matches("é/x")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*a" * 500 + "*b", "a" * 1024),
        ("*?" * 500 + "b", "a" * 1024),
        ("?" * 512 + "*b", "a" * 1024),
        ("*" * 1023 + "b", "a" * 1024),
        ("*" + "a" * 511 + "b", "a" * 1024),
        ("*" + "a?" * 255 + "b", "a" * 1024),
    ],
)
def test_no_pattern_is_slow(pattern: str, text: str) -> None:
    glob = Glob(pattern)
    for _ in range(10):
        assert not glob.matches(text)
