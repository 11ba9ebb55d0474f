"""The policy of a POST form: until when it may be sent, and what each of its fields may say.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from kvgate import strict_json
from kvgate.errors import AccessDenied, InvalidPolicyDocument

MAX_POLICY_NBYTES = 20 << 10
"""Of the longest policy that is read, in base64."""

_FREE = frozenset({"policy", "signature", "x-amz-signature", "awsaccesskeyid"})
"""Fields that need no condition: they carry the policy and its signature. So do those that are to be ignored."""

_IGNORED_PREFIX = "x-ignore-"

_EXPIRATION = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?Z")
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_EXTRA_ESCAPES = {b"$": b"$", b"v": b"\\u000b"}
"""Escapes that S3 asks for in policies and that JSON does not know."""


class Condition(NamedTuple):
    """What one field has to be: equal to `text`, or begin with it where it is a `prefix`. `field` is lower case."""

    field: str
    text: str
    prefix: bool

    def holds(self, fields: Mapping[str, str]) -> bool:
        """Whether the field is there and is so. A prefix of Content-Type is one of every type in a list."""
        value = fields.get(self.field)
        if value is None or not self.prefix:
            return value == self.text
        if self.field == "content-type":
            return all(each.lstrip(" ").startswith(self.text) for each in value.split(","))
        return value.startswith(self.text)

    def __str__(self) -> str:
        return json.dumps(["starts-with" if self.prefix else "eq", f"${self.field}", self.text], ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class PostPolicy:
    """What its signer lets whoever has the form upload.

    expires:    seconds since the epoch
    min_nbytes, max_nbytes: the lengths that the file may have, both inclusive; a `max_nbytes` of None is any
    """

    expires: float
    conditions: tuple[Condition, ...]
    min_nbytes: int = 0
    max_nbytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> PostPolicy:
        """The policy that the base64 `text` of a form holds. Raises InvalidPolicyDocument naming what is wrong."""
        document = _decode(text)
        if not isinstance(document, dict):
            raise InvalidPolicyDocument("Invalid Policy: expected a JSON object")
        for member in ("expiration", "conditions"):
            if member not in document:
                raise InvalidPolicyDocument(f"Invalid Policy: Policy missing {member}.")
        if unknown := sorted(document.keys() - {"expiration", "conditions"}):
            raise InvalidPolicyDocument(f"Invalid Policy: Unexpected: {unknown[0][:64]!r}")
        if not isinstance(document["conditions"], list):
            raise InvalidPolicyDocument("Invalid Policy: 'conditions' must be a list")
        conditions: list[Condition] = []
        least, most = 0, None
        for each in document["conditions"]:
            parsed = _parse_condition(each)
            if isinstance(parsed, Condition):
                conditions.append(parsed)
            else:
                least = max(least, parsed[0])
                most = parsed[1] if most is None else min(most, parsed[1])
        return cls(_parse_expiration(document["expiration"]), tuple(conditions), least, most)

    def check(self, fields: Mapping[str, str]) -> None:
        """Accept the fields of a form, by lower-case name, with its `bucket` among them.

        Raises AccessDenied for a condition that does not hold, and for a field that none is about.
        """
        for condition in self.conditions:
            if not condition.holds(fields):
                raise AccessDenied(f"Invalid according to Policy: Policy Condition failed: {condition}")
        covered = {condition.field for condition in self.conditions}
        extra = [name for name in sorted(fields.keys() - covered - _FREE) if not name.startswith(_IGNORED_PREFIX)]
        if extra:
            raise AccessDenied(f"Invalid according to Policy: Extra input fields: {', '.join(extra)[:256]}")


def _decode(text: str) -> object:
    if len(text) > MAX_POLICY_NBYTES:
        raise InvalidPolicyDocument(f"Invalid Policy: over {MAX_POLICY_NBYTES} bytes")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidPolicyDocument("Invalid Policy: not base64") from None
    try:
        return strict_json.loads(_ESCAPE.sub(lambda match: _EXTRA_ESCAPES.get(match[1], match[0]), content))
    except strict_json.JSONRefused as error:
        raise InvalidPolicyDocument(f"Invalid Policy: Invalid JSON: {error}") from None


def _parse_expiration(value: object) -> float:
    if isinstance(value, str) and (match := _EXPIRATION.fullmatch(value)):
        try:
            return datetime.fromisoformat(f"{match[1]}Z").timestamp()
        except ValueError:
            pass
    raise InvalidPolicyDocument(
        f"Invalid Policy: Invalid 'expiration' value: {str(value)[:64]!r}; expected one such as 2026-01-27T10:00:00Z"
    )


def _parse_condition(value: object) -> Condition | tuple[int, int]:
    """A condition on a field, or the least and the most bytes of the file."""
    if isinstance(value, dict):
        if len(value) != 1:
            raise InvalidPolicyDocument(
                "Invalid Policy: Invalid Simple-Condition: Simple-Conditions must have exactly one property specified."
            )
        [(field, text)] = value.items()
        if not isinstance(text, str):
            raise InvalidPolicyDocument(f"Invalid Policy: the value of {field[:64]!r} must be a string")
        return Condition(field.lower(), text, prefix=False)
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], str):
        raise InvalidPolicyDocument(
            "Invalid Policy: a condition is an object, or a list of a match type and two arguments"
        )
    match, first, second = value[0].lower(), value[1], value[2]
    if match == "content-length-range":
        if not (_is_length(first) and _is_length(second)):
            raise InvalidPolicyDocument("Invalid Policy: content-length-range takes two whole numbers of bytes")
        return first, second
    if match not in ("eq", "starts-with"):
        raise InvalidPolicyDocument(f"Invalid Policy: the match type {match[:64]!r} is not one of S3")
    if not (isinstance(first, str) and first.startswith("$") and isinstance(second, str)):
        raise InvalidPolicyDocument(f"Invalid Policy: {match} takes the name of a field, '$' before it, and a string")
    return Condition(first[1:].lower(), second, prefix=match == "starts-with")


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
