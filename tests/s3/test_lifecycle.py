from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import InvalidArgument, InvalidRequest, MalformedXML, UnsupportedOperation
from kvgate.s3.lifecycle import MAX_BODY_NBYTES, MAX_RULES, parse_lifecycle, render_lifecycle
from kvgate.store.lifecycle import Rule

S3 = botocore.session.get_session().get_service_model("s3")
DATE_MS = 1_893_456_000_000  # 2030-01-01
EXPIRE = "<Expiration><Days>3</Days></Expiration>"
ABORT = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
ALL = "<Filter/>"


def lifecycle(*rules: str) -> bytes:
    inside = "".join(f"<Rule>{rule}</Rule>" for rule in rules)
    return f'<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</LifecycleConfiguration>'.encode()


def rule_of(inside: str) -> Rule:
    (rule,) = parse_lifecycle(lifecycle(f"<Status>Enabled</Status>{inside}"))
    return rule


# --- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "fields"),
    [
        (ALL + EXPIRE, {"days": 3}),
        ("<Prefix/>" + EXPIRE, {"days": 3}),
        ("<Prefix>a b/</Prefix>" + EXPIRE, {"prefix": "a b/", "days": 3}),
        ("<Filter><Prefix> a</Prefix></Filter>" + EXPIRE, {"prefix": " a", "days": 3}),
        (f"<ID>i</ID>{ALL}{ABORT}", {"id": "i", "abort_upload_days": 7}),
        (f"<Filter><Prefix>a</Prefix></Filter>{ABORT}{EXPIRE}", {"prefix": "a", "days": 3, "abort_upload_days": 7}),
        ("<Filter><Tag><Key>k</Key><Value/></Tag></Filter>" + EXPIRE, {"tags": (("k", ""),), "days": 3}),
        ("<Filter><ObjectSizeGreaterThan>0</ObjectSizeGreaterThan></Filter>" + EXPIRE, {"larger_than": 0, "days": 3}),
        ("<Filter><ObjectSizeLessThan> 9 </ObjectSizeLessThan></Filter>" + EXPIRE, {"smaller_than": 9, "days": 3}),
        (
            "<Filter><And><Prefix>a</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><Tag><Key>l</Key><Value>w</Value></Tag>"
            "<ObjectSizeGreaterThan>1</ObjectSizeGreaterThan><ObjectSizeLessThan>3</ObjectSizeLessThan></And></Filter>"
            + EXPIRE,
            {"prefix": "a", "tags": (("k", "v"), ("l", "w")), "larger_than": 1, "smaller_than": 3, "days": 3},
        ),
        (f"{ALL}<Expiration><Date>2030-01-01T00:00:00Z</Date></Expiration>", {"date_ms": DATE_MS}),
        (f"{ALL}<Expiration><Date>2030-01-01T00:00:00.000Z</Date></Expiration>", {"date_ms": DATE_MS}),
        (f"{ALL}<Expiration><Date>2030-01-01</Date></Expiration>", {"date_ms": DATE_MS}),
        (f"{ALL}<Expiration><Date>2030-01-01T02:00:00+02:00</Date></Expiration>", {"date_ms": DATE_MS}),
    ],
)
def test_rules(inside: str, fields: dict[str, Any]) -> None:
    assert rule_of(inside) == Rule(**{"id": "rule-1", "enabled": True} | fields)


def test_a_rule_may_be_disabled() -> None:
    (rule,) = parse_lifecycle(lifecycle(f"<Status>Disabled</Status>{ALL}{EXPIRE}"))
    assert not rule.enabled


def test_rules_without_an_id_get_one_that_is_theirs_each_time() -> None:
    rest = f"<Status>Enabled</Status>{ALL}{EXPIRE}"
    body = lifecycle(rest, f"<ID>rule-3</ID>{rest}", f"<ID/>{rest}", f"<ID>rule-1003</ID>{rest}", rest)
    assert [rule.id for rule in parse_lifecycle(body)] == ["rule-1", "rule-3", "rule-2003", "rule-1003", "rule-5"]
    assert parse_lifecycle(body) == parse_lifecycle(body)


def test_a_thousand_rules_of_long_prefixes_and_ten_tags_fit_a_body() -> None:
    tags = "".join(f"<Tag><Key>key-{n}</Key><Value>value</Value></Tag>" for n in range(10))
    rule = f"<Status>Enabled</Status>{EXPIRE}<Filter><And><Prefix>{'p' * 1024}</Prefix>{tags}</And></Filter>"
    body = lifecycle(*[rule] * MAX_RULES)
    assert len(body) < MAX_BODY_NBYTES
    parsed = parse_lifecycle(body)
    assert len(parsed) == MAX_RULES
    assert len(parsed[-1].tags) == 10
    with pytest.raises(MalformedXML, match="1 to 1000 rules, not 1001"):
        parse_lifecycle(lifecycle(*[rule] * (MAX_RULES + 1)))


_TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=20)
_TAG_TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=20)


@st.composite
def rules(draw: st.DrawFn) -> list[Rule]:
    ids = draw(st.lists(_TEXT.filter(bool), min_size=1, max_size=4, unique=True))
    found = []
    for id in ids:
        sizes = sorted(
            draw(st.lists(st.integers(0, 1 << 50).map(lambda n: 3 * n), min_size=2, max_size=2, unique=True))
        )
        tags = draw(st.dictionaries(_TAG_TEXT.filter(lambda key: key[:3].lower() != "aws"), _TAG_TEXT, max_size=3))
        larger_than, smaller_than = draw(
            st.sampled_from([(None, None), (sizes[0], None), (None, sizes[1]), tuple(sizes)])
        )
        plain = not tags and larger_than is smaller_than is None
        days, date = draw(st.sampled_from([(1, None), (None, 0), (9, None), (None, DATE_MS)] + [(None, None)] * plain))
        abort = draw(st.integers(1, 99)) if days is date is None else draw(st.sampled_from([None] + [5] * plain))
        prefix = draw(_TEXT)
        found.append(
            Rule(id, draw(st.booleans()), prefix, tuple(tags.items()), larger_than, smaller_than, days, date, abort)
        )
    return found


@given(rules())
def test_rules_lead_back(rules: list[Rule]) -> None:
    assert parse_lifecycle(render_lifecycle(rules)) == tuple(rules)


def test_botocore_reads_what_it_wrote() -> None:
    wanted = [
        {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": 1}},
        {
            "ID": "b",
            "Status": "Disabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
        },
        {
            "ID": "c",
            "Status": "Enabled",
            "Filter": {"And": {"Prefix": "y", "Tags": [{"Key": "k", "Value": "v"}], "ObjectSizeLessThan": 5}},
            "Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)},
        },
        {"ID": "d", "Status": "Enabled", "Filter": {"Tag": {"Key": "k", "Value": "v"}}, "Expiration": {"Days": 4}},
    ]
    put = S3.operation_model("PutBucketLifecycleConfiguration")
    parameters = {"Bucket": "b", "LifecycleConfiguration": {"Rules": wanted}}
    request = create_serializer("rest-xml").serialize_to_request(parameters, put)
    body = render_lifecycle(parse_lifecycle(request["body"]))
    get = S3.operation_model("GetBucketLifecycleConfiguration")
    answer = create_parser("rest-xml").parse({"status_code": 200, "headers": {}, "body": body}, get.output_shape)
    assert answer["Rules"] == wanted


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, type[Exception], str]] = [
    (ALL, InvalidRequest, "needs an action"),
    (EXPIRE, MalformedXML, "needs a Filter"),
    (ALL + "<Prefix/>" + EXPIRE, MalformedXML, "in its place a Prefix"),
    (ALL + ALL + EXPIRE, MalformedXML, "<Filter> comes twice"),
    (ALL + EXPIRE + EXPIRE, MalformedXML, "<Expiration> comes twice"),
    (ALL + EXPIRE + "<Note/>", MalformedXML, "<Note>"),
    (
        ALL + "<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>",
        UnsupportedOperation,
        "<Transition>",
    ),
    (ALL + EXPIRE + "<NoncurrentVersionExpiration/>", UnsupportedOperation, "<NoncurrentVersionExpiration>"),
    (ALL + EXPIRE + "<NoncurrentVersionTransition/>", UnsupportedOperation, "<NoncurrentVersionTransition>"),
    (
        ALL + "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>",
        UnsupportedOperation,
        "<ExpiredObjectDeleteMarker>",
    ),
    (ALL + "<Expiration/>", MalformedXML, "Days or Date"),
    (ALL + "<Expiration><Days>1</Days><Date>2030-01-01</Date></Expiration>", MalformedXML, "Days or Date"),
    (ALL + "<Expiration><Days>0</Days></Expiration>", InvalidArgument, "positive"),
    (ALL + "<Expiration><Days>-1</Days></Expiration>", InvalidArgument, "positive"),
    (ALL + "<Expiration><Days>2147483648</Days></Expiration>", InvalidArgument, "less than"),
    (ALL + "<Expiration><Days>1.5</Days></Expiration>", MalformedXML, "whole number"),
    (ALL + "<Expiration><Days/></Expiration>", MalformedXML, "whole number"),
    (ALL + "<Expiration><Days>&#x661;</Days></Expiration>", MalformedXML, "whole number"),
    (ALL + f"<Expiration><Days>{'9' * 5000}</Days></Expiration>", MalformedXML, "whole number"),
    (ALL + "<Expiration><Date>2030-01-01T00:00:01Z</Date></Expiration>", InvalidArgument, "midnight"),
    (ALL + "<Expiration><Date>2030-01-01T00:00:00+01:00</Date></Expiration>", InvalidArgument, "midnight"),
    (ALL + "<Expiration><Date>1969-12-31</Date></Expiration>", InvalidArgument, "1970"),
    (ALL + "<Expiration><Date>tomorrow</Date></Expiration>", MalformedXML, "ISO 8601"),
    (ALL + "<Expiration><Date>0001-01-01T00:00:00+23:00</Date></Expiration>", InvalidArgument, "1970"),
    (ALL + "<AbortIncompleteMultipartUpload/>", MalformedXML, "DaysAfterInitiation"),
    (ALL + ABORT.replace("7", "0"), InvalidArgument, "positive"),
    ("<Filter><Tag><Key>k</Key><Value/></Tag></Filter>" + ABORT, InvalidRequest, "by tag or size"),
    ("<Filter><ObjectSizeGreaterThan>0</ObjectSizeGreaterThan></Filter>" + ABORT, InvalidRequest, "by tag or size"),
    ("<Filter><ObjectSizeLessThan>5</ObjectSizeLessThan></Filter>" + ABORT + EXPIRE, InvalidRequest, "by tag or size"),
    ("<Filter><Prefix>a</Prefix><Tag><Key>k</Key><Value/></Tag></Filter>" + EXPIRE, MalformedXML, "<And>"),
    ("<Filter><And/></Filter>" + EXPIRE, MalformedXML, "<And>"),
    ("<Filter><And><Suffix/></And></Filter>" + EXPIRE, MalformedXML, "<Suffix>"),
    ("<Filter><Tag><Key>k</Key></Tag></Filter>" + EXPIRE, MalformedXML, "<Value>"),
    ("<Filter><Tag><Key/><Value/></Tag></Filter>" + EXPIRE, InvalidRequest, "1 to 128"),
    (
        "<Filter><And>" + "<Tag><Key>k</Key><Value/></Tag>" * 2 + "</And></Filter>" + EXPIRE,
        InvalidRequest,
        "'k' is given twice",
    ),
    ("<Filter><ObjectSizeLessThan>0</ObjectSizeLessThan></Filter>" + EXPIRE, InvalidRequest, "smaller"),
    ("<Filter><ObjectSizeLessThan>-1</ObjectSizeLessThan></Filter>" + EXPIRE, InvalidArgument, "positive"),
    (
        "<Filter><And><ObjectSizeGreaterThan>4</ObjectSizeGreaterThan><ObjectSizeLessThan>5</ObjectSizeLessThan></And>"
        "</Filter>" + EXPIRE,
        InvalidRequest,
        "no object",
    ),
    (f"<ID>{'i' * 256}</ID>{ALL}{EXPIRE}", InvalidArgument, "255"),
]


@pytest.mark.parametrize(("inside", "error", "named"), REFUSED)
def test_other_rules_are_refused_by_name(inside: str, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        rule_of(inside)
    assert type(caught.value) is error


@pytest.mark.parametrize("status", ["", "<Status/>", "<Status>enabled</Status>", "<Status>Enabled</Status>" * 2])
def test_a_rule_needs_a_status(status: str) -> None:
    with pytest.raises(MalformedXML, match="Status"):
        parse_lifecycle(lifecycle(status + ALL + EXPIRE))


def test_an_id_is_of_one_rule() -> None:
    rule = f"<ID>a</ID><Status>Enabled</Status>{ALL}{EXPIRE}"
    with pytest.raises(InvalidArgument, match="two rules"):
        parse_lifecycle(lifecycle(rule, rule))


@pytest.mark.parametrize(
    "body", [b"", lifecycle(), b"<Lifecycle/>", b"<LifecycleConfiguration><Rules/></LifecycleConfiguration>"]
)
def test_other_documents_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedXML):
        parse_lifecycle(body)
