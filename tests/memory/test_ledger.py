from __future__ import annotations

import mmap
import os

import pytest

from kvgate.memory.ledger import Ledger, LedgerView, Returns, ReturnsView

GRANTS = 4


def test_grant_holds_until_it_ends_and_its_number_never_comes_back() -> None:
    ledger = Ledger(GRANTS)
    view = LedgerView(ledger.fd, GRANTS)
    seen = set()
    for _ in range(100):
        number = ledger.open()
        assert number
        assert number not in seen
        seen.add(number)
        assert view.holds(number)
        ledger.end(number)
        assert not view.holds(number)
        again = ledger.open()
        assert not view.holds(number), "an old number holds because its place is used again"
        ledger.end(again)
    ledger.close()
    assert not any(view.holds(number) for number in seen)


def test_ledger_is_full_with_as_many_grants_as_it_has_words() -> None:
    ledger = Ledger(GRANTS)
    numbers = [ledger.open() for _ in range(GRANTS)]
    assert len({number % GRANTS for number in numbers}) == GRANTS
    assert ledger.full
    ledger.end(numbers[0])
    assert not ledger.full
    ledger.close()


def test_engine_can_only_read_the_ledger() -> None:
    ledger = Ledger(GRANTS)
    with pytest.raises(PermissionError):
        mmap.mmap(ledger.fd, mmap.PAGESIZE)
    with pytest.raises(PermissionError):
        os.pwrite(ledger.fd, b"x", 0)
    with pytest.raises(OSError):
        os.ftruncate(ledger.fd, 0)
    ledger.close()


def test_gateway_sees_what_is_given_back() -> None:
    returns = Returns(GRANTS)
    view = ReturnsView(returns.fd, GRANTS)
    for number in (GRANTS + 1, 2 * GRANTS + 3):
        assert not returns.has(number)
        view.give_back(number)
        assert returns.has(number)
        assert not returns.has(number + GRANTS)
    returns.close()
