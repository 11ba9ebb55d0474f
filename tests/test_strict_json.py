from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.strict_json import JSONRefused, loads


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(), st.lists))
def test_strict_json_loads_what_was_dumped(value: object) -> None:
    assert loads(json.dumps(value).encode()) == value
    assert loads(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        ('"\ud800"'.encode("utf-8", "surrogatepass"), "not UTF-8"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"1e400", "overflows"),
        pytest.param(b"9" * 5000, "not JSON", id="long integer"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep list"),
        pytest.param(b'{"a":' * 100_000, "nested too deeply", id="deep object"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' appears twice"),
    ],
)
def test_the_cause_of_a_refusal_is_named(body: bytes, cause: str) -> None:
    with pytest.raises(JSONRefused, match=cause):
        loads(body)


def test_an_escaped_pair_of_surrogates_is_one_character() -> None:
    assert loads(b'"\\ud83d\\ude00"') == "\U0001f600"


@given(st.binary(max_size=64))
def test_any_bytes_are_a_value_or_refused(body: bytes) -> None:
    with contextlib.suppress(JSONRefused):
        loads(body)
