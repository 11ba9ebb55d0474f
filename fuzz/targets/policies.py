"""Bucket policies: a document is refused, or decides; and patterns match what a plain matcher says that they match."""

from __future__ import annotations

import json
import re
from typing import Any

from fuzz.draw import Draw
from fuzz.properties import must, refusals
from fuzz.targets.base import Target
from kvgate.auth.actions import ACTIONS, READ_ACTIONS
from kvgate.auth.glob import Glob
from kvgate.auth.policy import Effect, Policy

_STATEMENT: dict[str, Any] = {
    "Sid": "s",
    "Effect": "Allow",
    "Principal": {"AWS": ["arn:aws:iam::beta:root", "gamma"]},
    "Action": ["s3:Get*", "s3:ListBucket"],
    "Resource": ["arn:aws:s3:::bucket", "arn:aws:s3:::bucket/a*b?c"],
}
_ODD: tuple[Any, ...] = (
    *(None, True, 0, "", "*", "x", [], ["x"], {}, {"AWS": "*"}, {"AWS": {}}, "Deny", "Allow", "s3:*"),
    *(["s3:GetObject"], "arn:aws:s3:::bucket/*", "arn:aws:s3:::other/*", "arn:aws:s3:::bucket/" + "*a?" * 40),
    *("arn:aws:s3:::alpha_bucket", {"StringLike": {"s3:prefix": "a*"}}),
    *({"StringNotEquals": {"s3:ExistingObjectTag/a": ["b"]}}, "s3:Put?bject", "${a}", {"Null": {"s3:prefix": True}}),
    *({"StringEqualsIfExists": {"s3:delimiter": "/"}}, {"Bool": {"aws:x": "true"}}),
)
_MEMBERS = (*_STATEMENT, "Condition", "NotAction", "Odd")
_CALLERS = ("beta", "gamma", "delta", None)
_ACTIONS = tuple(sorted(ACTIONS))
_TOOLS = {"*": ".*", "?": "."}


def check(data: bytes) -> None:
    """A document that may be any JSON, or a good one with odd members."""
    draw = Draw(data)
    if draw.one_in(3):
        text = draw.rest()
    else:
        statements = [dict(_STATEMENT) for _ in range(1 + draw.below(2))]
        for statement in statements:
            for _ in range(draw.below(4)):
                name = draw.pick(_MEMBERS)
                if draw.one_in(4):
                    statement.pop(name, None)
                else:
                    statement[name] = draw.pick(_ODD)
        text = json.dumps({"Version": draw.pick(("2012-10-17", "x")), "Statement": statements}).encode()
    with refusals():
        policy = Policy.parse(text, owner="alpha", bucket="bucket")
        _decide(draw, policy)


def _decide(draw: Draw, policy: Policy) -> None:
    context = {"s3:prefix": draw.text(4), "s3:ExistingObjectTag/a": draw.text(4)}
    caller, action, key = draw.pick(_CALLERS), draw.pick(_ACTIONS), draw.pick(("", "a", "axbyc", "a/b/c", "x" * 1024))
    effect = policy.effect(caller, action, key, context)
    must(effect is not Effect.ALLOW or action in READ_ACTIONS, f"{action} is granted")
    everyone = any(statement.principals is None for statement in policy.statements)
    named = any(caller in (statement.principals or ()) for statement in policy.statements)
    must(effect is None or everyone or named, "a policy says something to one whom it does not name")


def check_patterns(data: bytes) -> None:
    draw = Draw(data)
    alphabet = "ab*?.\n[é"
    pattern = "".join(draw.pick(alphabet) for _ in range(draw.below(9)))
    text = "".join(draw.pick(alphabet) for _ in range(draw.below(13)))
    expected = re.fullmatch("".join(_TOOLS.get(each, re.escape(each)) for each in pattern), text, re.DOTALL)
    must(Glob(pattern).matches(text) == bool(expected), f"{pattern!r} and {text!r}")


_GOOD = json.dumps({"Statement": _STATEMENT | {"Condition": {"StringLike": {"s3:prefix": ["a*", "b"]}}}}).encode()

TARGETS = (
    Target(
        "policies",
        50_000,
        check,
        (b"\x02" + _GOOD,),
        tuple(json.dumps(value).encode() for value in (*_ODD, *_MEMBERS)),
    ),
    Target("patterns", 20_000, check_patterns),
)
