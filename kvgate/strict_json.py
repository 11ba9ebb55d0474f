"""JSON from strangers: RFC 8259 without the liberties that Python's parser takes.

Duplicate names, NaN and Infinity, numbers that overflow a double, lone surrogates and nesting deeper than the parser's
stack are all errors. The caller bounds the length.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn


class JSONRefused(ValueError):
    """Bytes that are not strict JSON; `name` is the duplicated object name, or empty for another cause."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


def loads(body: bytes) -> object:
    """The value that `body` holds: dict, list, str, int, float, bool or None.

    Raises JSONRefused, and nothing else, for whatever is not strict JSON in UTF-8.
    """
    try:
        text = body.decode("utf-8")
        value: object = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite_float
        )
        if "\\u" in text:  # escapes are the only way to a lone surrogate, which no UTF-8 can carry
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except JSONRefused:
        raise
    except UnicodeDecodeError as error:
        raise JSONRefused(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise JSONRefused("a string holds a lone surrogate") from None
    except RecursionError:
        raise JSONRefused("nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise JSONRefused(f"not JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members:
            raise JSONRefused(f"the name {name[:64]!r} appears twice in one object", name[:64])
        members[name] = value
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise JSONRefused(f"{name} is not a JSON number")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JSONRefused(f"the number {digits[:32]} overflows a double")
    return number
