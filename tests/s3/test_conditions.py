from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import NoSuchKey, NotModified, PreconditionFailed
from kvgate.messages import Headers
from kvgate.s3.conditions import Conditions
from kvgate.tiers.base import Record

RECORD = Record("acme", "b", "k", 7, 5, 1_700_000_000_900)
ETAG = RECORD.etag
MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"


def conditions(**headers: str) -> Conditions:
    return Conditions.parse(Headers([(name.replace("_", "-"), value) for name, value in headers.items()]))


READ: list[tuple[dict[str, str], type[Exception] | None]] = [
    ({}, None),
    ({"if_match": f'"{ETAG}"'}, None),
    ({"if_match": ETAG}, None),
    ({"if_match": "*"}, None),
    ({"if_match": f'"other", "{ETAG}"'}, None),
    ({"if_match": '"other"'}, PreconditionFailed),
    ({"if_match": f'W/"{ETAG}"'}, PreconditionFailed),  # If-Match compares strongly
    ({"if_none_match": f'"{ETAG}"'}, NotModified),
    ({"if_none_match": f'W/"{ETAG}"'}, NotModified),  # If-None-Match compares weakly
    ({"if_none_match": "*"}, NotModified),
    ({"if_none_match": '"other"'}, None),
    ({"if_modified_since": MODIFIED}, NotModified),
    ({"if_modified_since": LATER}, NotModified),
    ({"if_modified_since": EARLIER}, None),
    ({"if_unmodified_since": MODIFIED}, None),
    ({"if_unmodified_since": EARLIER}, PreconditionFailed),
    ({"if_modified_since": "yesterday"}, None),
    ({"if_unmodified_since": "0"}, None),
    # precedence
    ({"if_match": ETAG, "if_unmodified_since": EARLIER}, None),
    ({"if_match": "other", "if_unmodified_since": LATER}, PreconditionFailed),
    ({"if_none_match": ETAG, "if_modified_since": EARLIER}, NotModified),
    ({"if_none_match": "other", "if_modified_since": LATER}, None),
    ({"if_match": "other", "if_none_match": ETAG}, PreconditionFailed),
]


@pytest.mark.parametrize(("headers", "error"), READ)
def test_conditions_of_reads(headers: dict[str, str], error: type[Exception] | None) -> None:
    if error is None:
        conditions(**headers).check_read(RECORD)
    else:
        with pytest.raises(error):
            conditions(**headers).check_read(RECORD)


WRITE: list[tuple[dict[str, str], Record | None, type[Exception] | None]] = [
    ({"if_none_match": "*"}, None, None),
    ({"if_none_match": "*"}, RECORD, PreconditionFailed),
    ({"if_none_match": ETAG}, RECORD, PreconditionFailed),
    ({"if_none_match": "other"}, RECORD, None),
    ({"if_match": ETAG}, RECORD, None),
    ({"if_match": "*"}, RECORD, None),
    ({"if_match": "other"}, RECORD, PreconditionFailed),
    ({"if_match": ETAG}, None, NoSuchKey),
    ({"if_match": "*"}, None, NoSuchKey),
    ({"if_unmodified_since": EARLIER}, RECORD, PreconditionFailed),
    ({"if_unmodified_since": EARLIER}, None, None),
]


@pytest.mark.parametrize(("headers", "current", "error"), WRITE)
def test_conditions_of_writes(headers: dict[str, str], current: Record | None, error: type[Exception] | None) -> None:
    precondition = conditions(**headers).for_write()
    assert precondition is not None
    if error is None:
        precondition(current)
    else:
        with pytest.raises(error):
            precondition(current)


def test_a_write_without_conditions_has_no_precondition() -> None:
    assert conditions().for_write() is None
    assert conditions(if_modified_since=MODIFIED).for_write() is None  # for reads only, RFC 9110 13.1.3


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [("", True), (f'"{ETAG}"', True), ('"other"', False), (f'W/"{ETAG}"', False), (MODIFIED, True), (LATER, False)],
)
def test_a_range_of_another_version_is_not_given(if_range: str, applies: bool) -> None:
    assert conditions(if_range=if_range).range_applies(RECORD) is applies


@given(st.dictionaries(st.sampled_from(["if_match", "if_none_match", "if_modified_since", "if_range"]), st.text()))
def test_any_header_value_is_read_without_a_failure(headers: dict[str, Any]) -> None:
    found = conditions(**headers)
    found.range_applies(RECORD)
    try:
        found.check_read(RECORD)
        found.check_write(RECORD)
    except (PreconditionFailed, NotModified):
        pass


@pytest.mark.parametrize(("headers", "error"), READ)
def test_of_a_copy_source_every_failure_is_a_failed_precondition(
    headers: dict[str, str], error: type[Exception] | None
) -> None:
    named = [(f"x-amz-copy-source-{name.replace('_', '-')}", value) for name, value in headers.items()]
    found = Conditions.parse_copy_source(Headers([*named, ("if-match", "of-the-destination")]))
    if error is None:
        found.check_copy_source(RECORD)
    else:
        with pytest.raises(PreconditionFailed, match="x-amz-copy-source-If-"):
            found.check_copy_source(RECORD)
