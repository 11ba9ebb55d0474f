"""Bucket policies: who besides the owner may read, and what is denied to whom.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-policy-language-overview.html

A policy fails closed. What is not evaluated is refused when the policy is stored, never passed over, and so is what
could never take effect: an action without a resource of its kind, a condition on what an action never has. Nothing but
reading can be granted, since only the owner writes into a bucket; denied can be anything.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kvgate import strict_json
from kvgate.auth.actions import ACTIONS, BUCKET_ACTIONS, OBJECT_ACTIONS, READ_ACTIONS
from kvgate.auth.glob import Glob
from kvgate.auth.policy_conditions import Condition, parse_conditions, texts_of
from kvgate.errors import MalformedPolicy

ANYONE = None
"""The caller of a request without a signature."""

MAX_POLICY_NBYTES = 20 << 10
MAX_PATTERN_CHARS = 1024
"""No key is longer."""
MAX_SEARCHES = 16
"""How many patterns of a policy may have a wildcard before their end: each takes a pass over a key or a value."""

_VERSIONS = ("2012-10-17", "2008-10-17")
_ARN = "arn:aws:s3:::"
_TENANT = re.compile(r"(?:arn:aws:iam::)?([a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)(:root)?")
_ELEMENTS = ("Sid", "Effect", "Principal", "Action", "Resource", "Condition")
_REQUIRED = ("Effect", "Principal", "Action", "Resource")
_INSTEAD_OF = {"NotPrincipal": "Principal", "NotAction": "Action", "NotResource": "Resource"}
_GRANTABLE = f"others can be granted {', '.join(sorted(READ_ACTIONS))}, or s3:Get* and s3:List* for these"


class Effect(enum.Enum):
    """What a policy says to a request."""

    ALLOW = "Allow"
    DENY = "Deny"


@dataclass(frozen=True, slots=True)
class Statement:
    """One rule of a policy.

    principals: tenants; None is everyone, whether signed or not
    actions:    of ACTIONS; those of an ALLOW are all of READ_ACTIONS
    on_bucket:  whether it is about the bucket itself
    keys:       the objects that it is about
    """

    effect: Effect
    principals: frozenset[str] | None
    actions: frozenset[str]
    on_bucket: bool
    keys: tuple[Glob, ...]
    conditions: tuple[Condition, ...]

    def applies(self, caller: str | None, action: str, key: str, context: Mapping[str, str]) -> bool:
        """Whether this statement is about a request, as for `Policy.effect`."""
        return (
            (self.principals is None or caller in self.principals)
            and action in self.actions
            and (any(pattern.matches(key) for pattern in self.keys) if key else self.on_bucket)
            and all(condition.holds(context) for condition in self.conditions)
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """The statements of a bucket's policy."""

    statements: tuple[Statement, ...]

    @classmethod
    def parse(cls, text: bytes, *, owner: str, bucket: str) -> Policy:
        """The policy of a JSON document, for the bucket `bucket` of the tenant `owner`.

        Raises MalformedPolicy naming the statement, the element and what is accepted.
        """
        if len(text) > MAX_POLICY_NBYTES:
            raise MalformedPolicy(f"a policy has at most {MAX_POLICY_NBYTES} bytes, not {len(text)}")
        try:
            document = strict_json.loads(text)
        except strict_json.JSONRefused as error:
            raise MalformedPolicy(f"the policy: {error}") from None
        if not isinstance(document, dict):
            raise MalformedPolicy("a policy is a JSON object")
        for name in document:
            if name not in ("Version", "Id", "Statement"):
                raise MalformedPolicy(f"the element {name[:64]!r} is not one of Version, Id and Statement")
        if document.get("Version", _VERSIONS[1]) not in _VERSIONS:
            raise MalformedPolicy(f"Version: expected {' or '.join(_VERSIONS)}")
        if not isinstance(document.get("Id", ""), str):
            raise MalformedPolicy("Id: expected a string")
        return cls(_StatementParser(owner, bucket).parse_all(document.get("Statement")))

    def effect(self, caller: str | None, action: str, key: str, context: Mapping[str, str]) -> Effect | None:
        """What this policy says to a request: DENY where any statement does, else ALLOW, or None where none applies.

        caller:  a tenant, or ANYONE
        action:  of ACTIONS, as it is spelt there
        key:     the object, or "" for the bucket itself
        context: condition keys to the values that this request has
        """
        if action not in ACTIONS:
            raise ValueError(f"{action} is not an action of S3")  # or a Deny of s3:* would not see it
        found: Effect | None = None
        for statement in self.statements:
            if found is not statement.effect and statement.applies(caller, action, key, context):
                if statement.effect is Effect.DENY:
                    return Effect.DENY
                found = Effect.ALLOW
        return found

    @property
    def is_public(self) -> bool:
        """Whether everyone is allowed something, as GetBucketPolicyStatus means it.

        None of the conditions that there are narrows a grant to fixed callers, so none makes one less public.
        """
        return any(statement.effect is Effect.ALLOW and statement.principals is None for statement in self.statements)


class _StatementParser:
    """Statements of one document. Its parts raise MalformedPolicy; `parse_all` adds which statement it is."""

    def __init__(self, owner: str, bucket: str) -> None:
        self._bucket = bucket
        self._names = (bucket, f"{owner}_{bucket}")
        self._sids: set[str] = set()
        self._searches = 0

    def parse_all(self, value: object) -> tuple[Statement, ...]:
        statements = value if isinstance(value, list) else [value]
        if not statements or value is None:
            raise MalformedPolicy("Statement: expected an object, or a list of objects that is not empty")
        return tuple(self._parse_numbered(number, statement) for number, statement in enumerate(statements, 1))

    def _parse_numbered(self, number: int, statement: object) -> Statement:
        where = f"statement {number}"
        try:
            if not isinstance(statement, dict):
                raise MalformedPolicy("expected an object")
            sid = statement.get("Sid", "")
            if not isinstance(sid, str):
                raise MalformedPolicy("Sid: expected a string")
            if sid:
                where += f" (Sid {sid[:64]!r})"
                if sid in self._sids:
                    raise MalformedPolicy("Sid: an earlier statement has it")
                self._sids.add(sid)
            return self._parse(statement)
        except MalformedPolicy as error:
            raise MalformedPolicy(f"{where}: {error}") from None

    def _parse(self, statement: Mapping[str, object]) -> Statement:
        for name in statement:
            if name in _INSTEAD_OF:
                raise MalformedPolicy(f"{name} is not evaluated; use {_INSTEAD_OF[name]}")
            if name not in _ELEMENTS:
                raise MalformedPolicy(f"the element {name[:64]!r} is not one of {', '.join(_ELEMENTS)}")
        for name in _REQUIRED:
            if name not in statement:
                raise MalformedPolicy(f"{name} is missing")
        if statement["Effect"] not in ("Allow", "Deny"):
            raise MalformedPolicy("Effect: expected Allow or Deny")
        effect = Effect(statement["Effect"])
        principals = _parse_principal(statement["Principal"])
        on_bucket, keys = self._parse_resources(texts_of(statement["Resource"], "Resource"))
        conditions = parse_conditions(statement["Condition"], self._pattern) if "Condition" in statement else ()
        applicable = (BUCKET_ACTIONS if on_bucket else frozenset()) | (OBJECT_ACTIONS if keys else frozenset())
        actions: set[str] = set()
        for name in texts_of(statement["Action"], "Action"):
            named = self._parse_action(name, effect) & applicable
            if not named:
                others = "objects, such as" if on_bucket else "the bucket itself,"
                arn = f"{_ARN}{self._bucket}" + ("/*" if on_bucket else "")
                raise MalformedPolicy(f"Action {name[:64]!r} needs a Resource that names {others} {arn}")
            for condition in conditions:
                if not named & condition.actions:
                    raise MalformedPolicy(f"Condition on {condition.key[:160]!r}: Action {name[:64]!r} never has it")
            actions |= named
        return Statement(effect, principals, frozenset(actions), on_bucket, keys, conditions)

    def _parse_resources(self, arns: list[str]) -> tuple[bool, tuple[Glob, ...]]:
        """Whether the bucket itself is among them, and the patterns of keys."""
        on_bucket = False
        keys: list[Glob] = []
        for arn in arns:
            name, slash, pattern = arn.removeprefix(_ARN).partition("/")
            if not arn.startswith(_ARN) or name not in self._names or (slash and not pattern):
                raise MalformedPolicy(
                    f"Resource {arn[:160]!r}: expected {_ARN}{self._bucket} or {_ARN}{self._bucket}/<key pattern>"
                )
            if slash:
                keys.append(self._pattern(pattern))
            else:
                on_bucket = True
        return on_bucket, tuple(keys)

    def _parse_action(self, name: str, effect: Effect) -> frozenset[str]:
        """The actions that one name or pattern stands for; with ALLOW, those of them that can be granted."""
        pattern = self._pattern(name.lower())  # the case of an action does not matter
        named = frozenset(action for action in ACTIONS if pattern.matches(action.lower()))
        if not named:
            raise MalformedPolicy(f"Action {name[:64]!r} is not an action of S3 on a bucket or its objects")
        if effect is Effect.DENY:
            return named
        if not named & READ_ACTIONS or not all(action.startswith(("s3:Get", "s3:List")) for action in named):
            raise MalformedPolicy(f"Action {name[:64]!r} cannot be granted; {_GRANTABLE}")
        return named & READ_ACTIONS

    def _pattern(self, text: str) -> Glob:
        if len(text) > MAX_PATTERN_CHARS:
            raise MalformedPolicy(f"the pattern {text[:64]!r}... has over {MAX_PATTERN_CHARS} characters")
        glob = Glob(text)
        self._searches += glob.searches
        if self._searches > MAX_SEARCHES:
            raise MalformedPolicy(
                f"at most {MAX_SEARCHES} patterns of a policy may have a wildcard before their end; {text[:160]!r} is "
                f"one more"
            )
        return glob


def _parse_principal(value: object) -> frozenset[str] | None:
    """The tenants that are named, or None for everyone."""
    if value == "*":
        return None
    if not isinstance(value, dict) or not value:
        raise MalformedPolicy('Principal: expected "*" or {"AWS": a tenant, or a list of tenants}')
    tenants: set[str] = set()
    everyone = False
    for kind, names in value.items():
        if kind not in ("AWS", "CanonicalUser"):
            raise MalformedPolicy(f"Principal {kind[:64]!r} is not evaluated; use AWS or CanonicalUser")
        for name in texts_of(names, f"Principal {kind}"):
            if name == "*" and kind == "AWS":
                everyone = True
                continue
            match = _TENANT.fullmatch(name)
            if match is None or name.startswith("arn:") != bool(match[2]):
                raise MalformedPolicy(
                    f"Principal {kind} {name[:160]!r}: expected the name of a tenant, or arn:aws:iam::<tenant>:root"
                )
            tenants.add(match[1])
    return None if everyone else frozenset(tenants)
