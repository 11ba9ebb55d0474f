"""CORS: which web pages may call, by rules that the owner sets for a bucket.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/ManageCorsUsing.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvgate.errors import InvalidRequest, MalformedXML
from kvgate.s3.elements import Fields, text_of
from kvgate.s3.xml import Children, document, parse

SETTING = "cors"
"""By which the store keeps the rules of a bucket."""

MAX_RULES = 100
MAX_BODY_NBYTES = 64 << 10
MAX_ID_CHARS = 255
MAX_REQUEST_HEADERS = 100
METHODS = ("GET", "PUT", "HEAD", "POST", "DELETE")

VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ORIGIN = re.compile(r"[!-~]+")
_SECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class CorsRule:
    """One rule. An origin, and a header, may hold one `*`, which is any characters.

    headers:   that a page may send
    exposed:   headers of a response that a page may see
    max_age_s: for how long a browser may keep the answer to a preflight request
    """

    id: str
    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    max_age_s: int | None = None


def parse_cors(body: bytes) -> tuple[CorsRule, ...]:
    """The rules of a CORSConfiguration document, in order. Raises MalformedXML, InvalidRequest."""
    if len(body) > MAX_BODY_NBYTES:
        raise MalformedXML(f"a CORSConfiguration has at most {MAX_BODY_NBYTES} bytes, not {len(body)}")
    elements = Fields(parse(body, "CORSConfiguration"), many=["CORSRule"]).all("CORSRule")
    if not 1 <= len(elements) <= MAX_RULES:
        raise MalformedXML(f"a CORSConfiguration has 1 to {MAX_RULES} rules, not {len(elements)}")
    lists = ["AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader"]
    return tuple(_parse_rule(Fields(element, once=["ID", "MaxAgeSeconds"], many=lists)) for element in elements)


def render_cors(rules: Iterable[CorsRule]) -> bytes:
    """The CORSConfiguration document of rules."""
    return document("CORSConfiguration", [("CORSRule", _render_rule(rule)) for rule in rules])


def find_rule(rules: Iterable[CorsRule], origin: str, method: str, headers: Iterable[str] = ()) -> CorsRule | None:
    """The first rule that lets a page of `origin` send a request of `method` with these headers; None without one.

    headers: names, of Access-Control-Request-Headers; none for a request that is not a preflight one. There is no rule
             for more than MAX_REQUEST_HEADERS of them: anyone may ask, unsigned, and every name is held against a list.
    There is none either for an origin or a name that no browser sends: both go into the answer as they are.
    """
    names = {name.lower() for name in headers}
    if len(names) > MAX_REQUEST_HEADERS:
        return None
    if not (origin.isascii() and origin.isprintable() and all(_HEADER.fullmatch(name) for name in names)):
        return None
    for rule in rules:
        if (
            method in rule.methods
            and any(_matches(pattern, origin) for pattern in rule.origins)
            and all(any(_matches(pattern.lower(), name) for pattern in rule.headers) for name in names)
        ):
            return rule
    return None


def response_headers(rule: CorsRule, origin: str) -> dict[str, str]:
    """What the response to a page's request carries, for the rule that `find_rule` gave."""
    return _headers(rule, origin, ", ".join(rule.methods))


def preflight_headers(rule: CorsRule, origin: str, method: str, headers: Sequence[str]) -> dict[str, str]:
    """What the response to a preflight request carries, for the rule that `find_rule` gave for the same arguments."""
    found = _headers(rule, origin, method)
    if headers:
        found["Access-Control-Allow-Headers"] = ", ".join(name.lower() for name in headers)
    return found


def _headers(rule: CorsRule, origin: str, methods: str) -> dict[str, str]:
    anyone = next(pattern for pattern in rule.origins if _matches(pattern, origin)) == "*"
    headers = {
        "Access-Control-Allow-Origin": "*" if anyone else origin,
        "Access-Control-Allow-Methods": methods,
    }
    if not anyone:
        headers["Access-Control-Allow-Credentials"] = "true"
    if rule.exposed:
        headers["Access-Control-Expose-Headers"] = ", ".join(rule.exposed)
    if rule.max_age_s is not None:
        headers["Access-Control-Max-Age"] = str(rule.max_age_s)
    headers["Vary"] = VARY
    return headers


def _matches(pattern: str, text: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return text == pattern
    return len(text) >= len(head) + len(tail) and text.startswith(head) and text.endswith(tail)


def _parse_rule(rule: Fields) -> CorsRule:
    id = rule.text("ID") if "ID" in rule else ""
    if len(id) > MAX_ID_CHARS:
        raise InvalidRequest(f"the ID of a CORSRule has at most {MAX_ID_CHARS} characters, not {len(id)}")
    max_age = rule.word("MaxAgeSeconds") if "MaxAgeSeconds" in rule else None
    if max_age is not None and not _SECONDS.fullmatch(max_age):
        raise MalformedXML(f"MaxAgeSeconds: expected a whole number of seconds, got {max_age[:64]!r}")
    methods = _words(rule, "AllowedMethod")
    for method in methods:
        if method not in METHODS:
            raise InvalidRequest(f"AllowedMethod {method[:64]!r} is not one of {', '.join(METHODS)}")
    exposed = _words(rule, "ExposeHeader", _HEADER)
    for name in exposed:
        if "*" in name:
            raise InvalidRequest(f"ExposeHeader {name[:64]!r}: a wildcard is not offered here")
    origins = _words(rule, "AllowedOrigin", _ORIGIN)
    if not origins or not methods:
        raise MalformedXML("a CORSRule needs an AllowedOrigin and an AllowedMethod")
    return CorsRule(
        id=id,
        origins=origins,
        methods=methods,
        headers=_words(rule, "AllowedHeader", _HEADER),
        exposed=exposed,
        max_age_s=None if max_age is None else int(max_age),
    )


def _words(rule: Fields, tag: str, form: re.Pattern[str] | None = None) -> tuple[str, ...]:
    words = tuple(text_of(element).strip() for element in rule.all(tag))
    for word in words:
        if form is not None and not form.fullmatch(word):
            raise InvalidRequest(f"{tag} {word[:64]!r} is not one that a request can carry")
        if word.count("*") > 1:
            raise InvalidRequest(f"{tag} {word[:64]!r} has more than one wildcard")
    return words


def _render_rule(rule: CorsRule) -> Children:
    elements: list[tuple[str, str | int]] = [("ID", rule.id)] if rule.id else []
    elements += [("AllowedOrigin", origin) for origin in rule.origins]
    elements += [("AllowedMethod", method) for method in rule.methods]
    elements += [("AllowedHeader", header) for header in rule.headers]
    elements += [("ExposeHeader", header) for header in rule.exposed]
    if rule.max_age_s is not None:
        elements.append(("MaxAgeSeconds", rule.max_age_s))
    return elements
