from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.store.lifecycle import Rule, due, dumps, expires_ms, first_expiry, loads, upload_due
from kvgate.tiers.base import Record

DAY_S = 86_400.0
DAY_MS = 86_400_000
MTIME_MS = 1_700_000_000_123
RECORD = Record("acme", "b", "logs/a", 100, 5, MTIME_MS, {"x-amz-tagging": "class=cold&empty=&team=k%26v"})
EXPIRED_MS = MTIME_MS + 2 * DAY_MS


def rule(**fields: Any) -> Rule:
    return replace(Rule("r", enabled=True, days=2), **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, EXPIRED_MS),
        ({"enabled": False}, None),
        ({"prefix": "logs/"}, EXPIRED_MS),
        ({"prefix": "logs/a"}, EXPIRED_MS),
        ({"prefix": "logs/ab"}, None),
        ({"prefix": "Logs/"}, None),
        ({"prefix": "a"}, None),
        ({"larger_than": 99}, EXPIRED_MS),
        ({"larger_than": 100}, None),
        ({"larger_than": 0}, EXPIRED_MS),
        ({"smaller_than": 101}, EXPIRED_MS),
        ({"smaller_than": 100}, None),
        ({"tags": (("class", "cold"),)}, EXPIRED_MS),
        ({"tags": (("class", "hot"),)}, None),
        ({"tags": (("Class", "cold"),)}, None),
        ({"tags": (("team", "k&v"), ("empty", ""))}, EXPIRED_MS),
        ({"tags": (("team", "k&v"), ("other", ""))}, None),
        ({"prefix": "logs/", "tags": (("class", "cold"),), "larger_than": 1, "smaller_than": 1000}, EXPIRED_MS),
        ({"prefix": "x/", "tags": (("class", "cold"),), "larger_than": 1, "smaller_than": 1000}, None),
        ({"days": None, "date_ms": 5 * DAY_MS}, 5 * DAY_MS),  # before the object was written: it is expired at once
        ({"days": None, "date_ms": 30_000 * DAY_MS}, 30_000 * DAY_MS),
        ({"days": None, "date_ms": 5 * DAY_MS, "prefix": "x"}, None),
        ({"days": None, "abort_upload_days": 1}, None),
    ],
)
def test_when_a_rule_makes_an_object_expire(fields: dict[str, Any], expected: int | None) -> None:
    assert expires_ms(rule(**fields), RECORD, DAY_S) == expected


def test_an_object_without_tags_has_none() -> None:
    plain = RECORD._replace(attributes={})
    assert expires_ms(rule(), plain, DAY_S) == EXPIRED_MS
    assert expires_ms(rule(tags=(("empty", ""),)), plain, DAY_S) is None


def test_a_day_may_be_shorter() -> None:
    assert expires_ms(rule(days=3), RECORD, 0.5) == MTIME_MS + 1500


def test_an_object_is_due_from_the_first_moment_on() -> None:
    rules = [rule(id="late", days=9), rule(id="off", days=1, enabled=False), rule(id="soon"), rule(id="same")]
    assert first_expiry(rules, RECORD, DAY_S) == (EXPIRED_MS, "soon")
    assert not due(rules, RECORD, EXPIRED_MS - 1, DAY_S)
    assert due(rules, RECORD, EXPIRED_MS, DAY_S)


def test_without_a_rule_nothing_is_ever_due() -> None:
    for rules in ([], [rule(prefix="x/")], [rule(enabled=False)]):
        assert first_expiry(rules, RECORD, DAY_S) is None
        assert not due(rules, RECORD, 1 << 62, DAY_S)


@pytest.mark.parametrize(
    ("fields", "aborted"),
    [
        ({}, True),
        ({"abort_upload_days": 3}, False),
        ({"abort_upload_days": None, "days": 1}, False),
        ({"enabled": False}, False),
        ({"prefix": "logs/"}, True),
        ({"prefix": "x/"}, False),
    ],
)
def test_unfinished_uploads(fields: dict[str, Any], aborted: bool) -> None:
    rules = [rule(prefix="none/", abort_upload_days=1), rule(**{"days": None, "abort_upload_days": 2} | fields)]
    assert upload_due(rules, "logs/a", MTIME_MS, EXPIRED_MS, DAY_S) is aborted
    assert not upload_due(rules, "logs/a", MTIME_MS, EXPIRED_MS - 1, DAY_S)


RULES = st.builds(
    Rule,
    id=st.text(max_size=9),
    enabled=st.booleans(),
    prefix=st.text(max_size=9),
    tags=st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=3).map(tuple),
    larger_than=st.none() | st.integers(0, 1 << 50),
    smaller_than=st.none() | st.integers(0, 1 << 50),
    days=st.none() | st.integers(1, 9999),
    date_ms=st.none() | st.integers(0, 1 << 45),
    abort_upload_days=st.none() | st.integers(1, 9999),
)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(RULES, max_size=4))
def test_stored_rules_lead_back(rules: list[Rule]) -> None:
    assert loads(dumps(rules)) == tuple(rules)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(RULES, max_size=4), st.integers(0, 1 << 45))
def test_an_object_is_due_when_any_rule_says_so(rules: list[Rule], now_ms: int) -> None:
    each = [due([one], RECORD, now_ms, DAY_S) for one in rules]
    assert due(rules, RECORD, now_ms, DAY_S) is any(each)
