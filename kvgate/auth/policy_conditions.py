"""Conditions of a bucket policy: what must hold of a request for a statement to apply.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvgate.auth.actions import LISTINGS, TAGGED_OBJECT_ACTIONS
from kvgate.auth.glob import Glob
from kvgate.errors import MalformedPolicy

PREFIX = "s3:prefix"
DELIMITER = "s3:delimiter"
EXISTING_TAG = "s3:ExistingObjectTag/"

_IF_EXISTS = "IfExists"
_NULL = "Null"
_OPERATORS = ("StringEquals", "StringNotEquals", "StringLike", "StringNotLike")
_ACCEPTED_OPERATORS = f"{', '.join(_OPERATORS)}, each also with {_IF_EXISTS}, and {_NULL}"
_ACCEPTED_KEYS = f"{PREFIX}, {DELIMITER} and {EXISTING_TAG}<tag key>"


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator on one condition key.

    values:     what is compared with; one that is equal, or like, is enough
    negated:    holds where no value is equal, or like
    without:    whether it holds of a request that does not have the key
    """

    key: str
    values: tuple[Glob | str, ...]
    negated: bool
    without: bool

    def holds(self, context: Mapping[str, str]) -> bool:
        """Whether a request with these condition keys meets it."""
        given = context.get(self.key)
        if given is None:
            return self.without
        return self.negated is not any(
            value == given if isinstance(value, str) else value.matches(given) for value in self.values
        )

    @property
    def actions(self) -> frozenset[str]:
        """The actions whose requests may have the key."""
        return TAGGED_OBJECT_ACTIONS if self.key.startswith(EXISTING_TAG) else LISTINGS


def parse_conditions(block: object, pattern: Callable[[str], Glob]) -> tuple[Condition, ...]:
    """The conditions of a Condition element, all of which must hold.

    pattern: makes the pattern of a value of StringLike
    Raises MalformedPolicy naming the operator, or the key, that is not evaluated.
    """
    conditions: list[Condition] = []
    for operator, tests in _members(block, "Condition").items():
        for name, values in _members(tests, f"Condition {operator[:64]}").items():
            conditions.append(_parse(operator, _parse_key(name), values, pattern))
    return tuple(conditions)


def _parse(operator: str, key: str, values: object, pattern: Callable[[str], Glob]) -> Condition:
    where = f"Condition {operator[:64]} of {key[:160]}"
    if operator == _NULL:
        if values not in ("true", "false") and not isinstance(values, bool):
            raise MalformedPolicy(f'{where}: expected "true" or "false"')
        absent = values in ("true", True)
        return Condition(key, (), negated=not absent, without=absent)
    comparison = operator.removesuffix(_IF_EXISTS)
    if comparison not in _OPERATORS:
        raise MalformedPolicy(f"the Condition operator {operator[:64]!r} is not evaluated; use {_ACCEPTED_OPERATORS}")
    texts = texts_of(values, where)
    negated = "Not" in comparison
    return Condition(
        key,
        tuple([pattern(text) for text in texts] if comparison.endswith("Like") else texts),
        negated,
        without=negated or operator.endswith(_IF_EXISTS),
    )


def _parse_key(name: str) -> str:
    """A condition key as `Condition` has it. Its case does not matter, but that of a tag's key does."""
    if name.lower() in (PREFIX, DELIMITER):
        return name.lower()
    head, tag = name[: len(EXISTING_TAG)], name[len(EXISTING_TAG) :]
    if head.lower() != EXISTING_TAG.lower() or not tag:
        raise MalformedPolicy(f"the Condition key {name[:160]!r} is not evaluated; use {_ACCEPTED_KEYS}")
    return EXISTING_TAG + tag


def texts_of(value: object, where: str) -> list[str]:
    """The strings of an element that is one string or a list of them, at least one.

    Raises MalformedPolicy, also for a policy variable: none is evaluated.
    """
    values = value if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str)]
    if not texts or len(texts) < len(values):
        raise MalformedPolicy(f"{where}: expected a string, or a list of strings that is not empty")
    for text in texts:
        if "${" in text:
            raise MalformedPolicy(f"{where}: the policy variable in {text[:160]!r} is not evaluated; write the value")
    return texts


def _members(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        raise MalformedPolicy(f"{where}: expected an object that is not empty")
    return value
