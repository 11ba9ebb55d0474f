"""What must hold of every parser: it takes its input, or refuses it in a way that a caller gets a clear answer for."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from kvgate.error_table import row_of
from kvgate.errors import KVGateError, TierError

T = TypeVar("T")

_NOT_OFFERED, _SLOW_DOWN = 501, 503


class Broken(AssertionError):
    """A property that does not hold: a finding."""


def must(holds: object, finding: str) -> None:
    """Raises Broken, saying what was found, unless the first argument is true."""
    if not holds:
        raise Broken(finding)


def is_clear(status: int) -> bool:
    """Whether a status is one that a request may get, whatever it is: no failure of the gateway."""
    return 200 <= status < 500 or status in (_NOT_OFFERED, _SLOW_DOWN)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Swallows the errors that stand for a clear answer. Every other exception is a finding, and goes on."""
    try:
        yield
    except KVGateError as error:
        if type(error) is TierError or not is_clear(row_of(error).status):  # a 503, but no fault of the input
            raise


def run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise Broken("a coroutine waits for something that nobody will do")
