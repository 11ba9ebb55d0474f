from __future__ import annotations

from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given
from hypothesis import strategies as st

from kvgate.errors import InvalidRequest, MalformedXML
from kvgate.s3.cors import (
    MAX_BODY_NBYTES,
    MAX_REQUEST_HEADERS,
    MAX_RULES,
    METHODS,
    CorsRule,
    find_rule,
    parse_cors,
    preflight_headers,
    render_cors,
    response_headers,
)

S3 = botocore.session.get_session().get_service_model("s3")
VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"
LEAST = "<AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"


def cors(*rules: str) -> bytes:
    inside = "".join(f"<CORSRule>{rule}</CORSRule>" for rule in rules)
    return f'<CORSConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</CORSConfiguration>'.encode()


# --- which rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("*", ["https://a.example", "null", ""], []),
        (
            "https://a.example",
            ["https://a.example"],
            ["http://a.example", "https://A.example", "https://a.example:8443"],
        ),
        (
            "https://*.example",
            ["https://a.example", "https://a.b.example", "https://.example"],
            ["https://example", "a"],
        ),
        ("*.example", ["https://a.example", ".example"], ["https://a.example.evil", "example"]),
        ("http://a*", ["http://a", "http://a.example"], ["https://a"]),
        ("ab*ba", ["abba", "abxba"], ["aba", "ab", "abbax"]),
        ("a.c", ["a.c"], ["abc"]),
    ],
)
def test_origins(pattern: str, inside: list[str], outside: list[str]) -> None:
    rule = CorsRule("", (pattern,), ("GET",))
    assert [find_rule([rule], origin, "GET") for origin in inside] == [rule] * len(inside)
    assert [find_rule([rule], origin, "GET") for origin in outside] == [None] * len(outside)


@pytest.mark.parametrize(
    ("allowed", "asked", "granted"),
    [
        ((), [], True),
        ((), ["x-a"], False),
        (("*",), ["x-a", "Authorization"], True),
        (("x-amz-*",), ["X-Amz-Date", "x-amz-"], True),
        (("X-AMZ-*",), ["x-amz-date"], True),
        (("x-amz-*",), ["x-amz-date", "x-other"], False),
        (("x-amz-*", "Content-Type"), ["x-amz-date", "content-type"], True),
        (("x-amz-date",), ["x-amz-date2"], False),
    ],
)
def test_headers_that_a_page_may_send(allowed: tuple[str, ...], asked: list[str], granted: bool) -> None:
    rule = CorsRule("", ("*",), ("PUT",), headers=allowed)
    assert find_rule([rule], "https://a.example", "PUT", asked) is (rule if granted else None)


@pytest.mark.parametrize("odd", ["x\udcff", "x\x7f", "x\u00e9"])
def test_what_no_answer_can_repeat_fits_no_rule(odd: str) -> None:
    rule = CorsRule("", ("http://*",), ("PUT",), headers=("*",))
    assert find_rule([rule], f"http://{odd}", "PUT") is None
    assert find_rule([rule], "http://a.example", "PUT", [odd]) is None


def test_the_first_rule_that_fits_in_everything_is_taken() -> None:
    first = CorsRule("1", ("https://a.example",), ("GET",))
    second = CorsRule("2", ("https://*.example", "https://b.test"), ("GET", "PUT"), headers=("x-*",))
    third = CorsRule("3", ("*",), ("GET", "DELETE"))
    rules = [first, second, third]
    assert find_rule(rules, "https://a.example", "GET") is first
    assert find_rule(rules, "https://a.example", "GET", ["x-a"]) is second
    assert find_rule(rules, "https://a.example", "PUT") is second
    assert find_rule(rules, "https://b.test", "GET") is second
    assert find_rule(rules, "https://c.test", "GET") is third
    assert find_rule(rules, "https://a.example", "DELETE") is third
    for origin, method, headers in (
        ("https://c.test", "PUT", []),
        ("https://c.test", "GET", ["x-a"]),
        ("https://a.example", "POST", []),
        ("https://a.example", "get", []),
        ("https://a.example", "", []),
    ):
        assert find_rule(rules, origin, method, headers) is None
    assert find_rule([], "https://a.example", "GET") is None


def test_a_preflight_request_of_very_many_headers_fits_no_rule() -> None:
    rule = CorsRule("", ("*",), ("PUT",), headers=("*",))
    names = [f"x-{n}" for n in range(MAX_REQUEST_HEADERS)]
    assert find_rule([rule], "null", "PUT", names * 40) is rule
    assert find_rule([rule], "null", "PUT", [*names, "x-more"]) is None


def test_a_preflight_request_is_answered_soon_whatever_the_rules() -> None:
    headers = tuple(f"x-{n}" for n in range(2000))  # as many as a document has room for
    rule = CorsRule("", ("*",), ("PUT",), headers=(*headers, "*"))
    assert find_rule([rule], "null", "PUT", [f"y-{n}" for n in range(MAX_REQUEST_HEADERS)]) is rule


# --- what is answered -------------------------------------------------------------------------------------------------


def test_a_page_of_a_named_origin_may_send_credentials() -> None:
    rule = CorsRule("", ("https://*.example",), ("GET", "PUT"), ("*",), ("ETag", "x-amz-meta-a"), 0)
    assert response_headers(rule, "https://a.example") == {
        "Access-Control-Allow-Origin": "https://a.example",
        "Access-Control-Allow-Methods": "GET, PUT",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "ETag, x-amz-meta-a",
        "Access-Control-Max-Age": "0",
        "Vary": VARY,
    }
    assert preflight_headers(rule, "https://a.example", "PUT", ["X-Amz-Date", "content-type"]) == {
        "Access-Control-Allow-Origin": "https://a.example",
        "Access-Control-Allow-Methods": "PUT",
        "Access-Control-Allow-Headers": "x-amz-date, content-type",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "ETag, x-amz-meta-a",
        "Access-Control-Max-Age": "0",
        "Vary": VARY,
    }


def test_any_page_may_call_without_credentials() -> None:
    rule = CorsRule("", ("*",), ("GET",))
    expected = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET", "Vary": VARY}
    assert response_headers(rule, "https://a.example") == expected
    assert preflight_headers(rule, "https://a.example", "GET", []) == expected


@pytest.mark.parametrize(
    ("origins", "answered"), [(("https://a.example", "*"), "https://a.example"), (("*", "https://a.example"), "*")]
)
def test_the_origin_that_fits_first_decides(origins: tuple[str, ...], answered: str) -> None:
    headers = response_headers(CorsRule("", origins, ("GET",)), "https://a.example")
    assert headers["Access-Control-Allow-Origin"] == answered
    assert ("Access-Control-Allow-Credentials" in headers) is (answered != "*")


# --- the document -----------------------------------------------------------------------------------------------------

_ORIGINS = st.from_regex(r"[!-)+-~]{0,20}\*?[!-)+-~]{1,20}", fullmatch=True) | st.just("*")
_NAMES = st.from_regex(r"[A-Za-z0-9!#$%&'+.^_`|~-]{1,20}", fullmatch=True)
_RULES = st.builds(
    CorsRule,
    id=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=30),
    origins=st.lists(_ORIGINS, min_size=1, max_size=3).map(tuple),
    methods=st.lists(st.sampled_from(METHODS), min_size=1, max_size=3).map(tuple),
    headers=st.lists(_NAMES | st.sampled_from(["*", "x-amz-*"]), max_size=3).map(tuple),
    exposed=st.lists(_NAMES, max_size=3).map(tuple),
    max_age_s=st.none() | st.integers(0, 999_999_999),
)


@given(st.lists(_RULES, min_size=1, max_size=4))
def test_rules_lead_back(rules: list[CorsRule]) -> None:
    assert parse_cors(render_cors(rules)) == tuple(rules)


@given(_RULES, st.sampled_from(["https://a.example", "null", "*", "x"]), st.sampled_from(METHODS))
def test_what_is_answered_is_what_the_rule_allows(rule: CorsRule, origin: str, method: str) -> None:
    if find_rule([rule], origin, method) is None:
        return
    headers = preflight_headers(rule, origin, method, [])
    assert headers["Access-Control-Allow-Origin"] in (origin, "*")
    assert all("\r" not in value and "\n" not in value for value in headers.values())


def test_botocore_reads_what_it_wrote() -> None:
    wanted: list[dict[str, Any]] = [
        {
            "ID": "pages",
            "AllowedHeaders": ["*"],
            "AllowedMethods": ["GET", "HEAD"],
            "AllowedOrigins": ["https://*.example"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 3000,
        },
        {"AllowedMethods": ["DELETE"], "AllowedOrigins": ["*"]},
    ]
    put = S3.operation_model("PutBucketCors")
    parameters = {"Bucket": "b", "CORSConfiguration": {"CORSRules": wanted}}
    request = create_serializer("rest-xml").serialize_to_request(parameters, put)
    body = render_cors(parse_cors(request["body"]))
    get = S3.operation_model("GetBucketCors")
    answer = create_parser("rest-xml").parse({"status_code": 200, "headers": {}, "body": body}, get.output_shape)
    assert answer["CORSRules"] == wanted


@pytest.mark.parametrize(
    ("inside", "error", "named"),
    [
        ("", MalformedXML, "needs an AllowedOrigin"),
        ("<AllowedOrigin>*</AllowedOrigin>", MalformedXML, "AllowedMethod"),
        ("<AllowedMethod>GET</AllowedMethod>", MalformedXML, "AllowedOrigin"),
        (LEAST + "<AllowedMethods>GET</AllowedMethods>", MalformedXML, "<AllowedMethods>"),
        (LEAST + "<ID>a</ID><ID>b</ID>", MalformedXML, "<ID> comes twice"),
        (LEAST + f"<ID>{'a' * 256}</ID>", InvalidRequest, "255"),
        (LEAST + "<AllowedMethod>PATCH</AllowedMethod>", InvalidRequest, "'PATCH' is not one of GET, PUT"),
        (LEAST + "<AllowedMethod>get</AllowedMethod>", InvalidRequest, "'get'"),
        (LEAST + "<AllowedMethod>*</AllowedMethod>", InvalidRequest, "AllowedMethod"),
        (LEAST + "<AllowedOrigin>*.*</AllowedOrigin>", InvalidRequest, "more than one wildcard"),
        (LEAST + "<AllowedOrigin/>", InvalidRequest, "AllowedOrigin ''"),
        (LEAST + "<AllowedOrigin>a b</AllowedOrigin>", InvalidRequest, "AllowedOrigin"),
        (LEAST + "<AllowedHeader>x-*-*</AllowedHeader>", InvalidRequest, "more than one wildcard"),
        (LEAST + "<AllowedHeader>x a</AllowedHeader>", InvalidRequest, "AllowedHeader"),
        (LEAST + "<AllowedHeader/>", InvalidRequest, "AllowedHeader"),
        (LEAST + "<ExposeHeader>x-*</ExposeHeader>", InvalidRequest, "ExposeHeader"),
        (LEAST + "<ExposeHeader>a&#13;&#10;b: c</ExposeHeader>", InvalidRequest, "ExposeHeader"),
        (LEAST + "<ExposeHeader><b/></ExposeHeader>", MalformedXML, "<b>"),
        (LEAST + "<MaxAgeSeconds>-1</MaxAgeSeconds>", MalformedXML, "MaxAgeSeconds"),
        (LEAST + "<MaxAgeSeconds/>", MalformedXML, "MaxAgeSeconds"),
        (LEAST + f"<MaxAgeSeconds>{'1' * 10}</MaxAgeSeconds>", MalformedXML, "MaxAgeSeconds"),
    ],
)
def test_other_rules_are_refused_by_name(inside: str, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        parse_cors(cors(inside))
    assert type(caught.value) is error


def test_bounds_of_a_document() -> None:
    assert len(parse_cors(cors(*[LEAST] * MAX_RULES))) == MAX_RULES
    for body in (b"", cors(), cors(*[LEAST] * (MAX_RULES + 1)), b"<CORS/>"):
        with pytest.raises(MalformedXML):
            parse_cors(body)
    padded = cors(LEAST)
    assert parse_cors(padded.ljust(MAX_BODY_NBYTES)) == parse_cors(padded)
    with pytest.raises(MalformedXML, match="at most 65536 bytes"):
        parse_cors(padded.ljust(MAX_BODY_NBYTES + 1))
