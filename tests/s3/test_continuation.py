from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import InvalidArgument
from kvgate.s3.continuation import decode_token, encode_token


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_tokens_lead_back_and_need_no_quoting(after: str) -> None:
    token = encode_token(after)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert decode_token(token) == after


@pytest.mark.parametrize("token", ["", "x", "abc=", "a+b/", "Mg", "MTo*", "é", "MTr_", "A" * 5000])
def test_foreign_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_token(token)


@given(st.text(max_size=50))
def test_any_text_is_a_token_or_refused(token: str) -> None:
    with contextlib.suppress(InvalidArgument):
        decode_token(token)
