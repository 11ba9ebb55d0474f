"""Both walks over chains, the one in Python and the one in C, give the same."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sortedcontainers import SortedDict

from kvgate.store import plain_walks, walks
from kvgate.store.index import Entry
from kvgate.tiers.base import Record

PREFIX = f"kv/{'ab' * 32}/"


@pytest.fixture(params=["python", "c"])
def walk(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "python":
        return plain_walks
    return pytest.importorskip("kvgate.native", reason="needs a C compiler and Python's headers, then `make native`")


def digest(number: int) -> bytes:
    return bytes([number, 0x00, 0x09, 0x0A, 0x9F, 0xA9, 0xFA, 0xFF]) * 4


def entry(name: str = "k") -> Entry:
    return Entry(Record("t", "b", name, 1, 0, 0), ("copy",))


def test_the_store_walks_in_c_where_that_was_built() -> None:
    try:
        expected = import_module("kvgate.native")
    except ImportError:
        expected = plain_walks
    assert (walks.find_chain, walks.add_leases) == (expected.find_chain, expected.add_leases)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(there=st.sets(st.integers(0, 255)), chain=st.lists(st.integers(0, 255)), sort=st.booleans())
def test_a_chain_is_found_up_to_the_first_link_that_is_not_there(there: set[int], chain: list[int], sort: bool) -> None:
    objects: dict[str, int] = {PREFIX + digest(number).hex(): number for number in there}
    objects |= {f"kv/{'cd' * 32}/{digest(number).hex()}": -1 for number in range(256)}
    held = SortedDict(objects) if sort else objects
    expected = []
    for number in chain:
        if number not in there:
            break
        expected.append(number)
    hashes = b"".join(map(digest, chain))
    assert plain_walks.find_chain(held, PREFIX, hashes) == walks.find_chain(held, PREFIX, hashes) == expected


def test_every_byte_of_a_hash_has_its_digits(walk: ModuleType) -> None:
    run = bytes(range(256)) + bytes(reversed(range(256)))
    objects = {PREFIX + run[start : start + 32].hex(): start for start in range(0, len(run), 32)}
    assert walk.find_chain(objects, PREFIX, run) == list(range(0, len(run), 32))


def test_what_is_left_of_a_hash_is_none(walk: ModuleType) -> None:
    objects = {PREFIX + digest(1).hex(): 1, PREFIX + digest(2)[:31].hex(): 2, PREFIX: 3}
    assert walk.find_chain(objects, PREFIX, digest(1) + digest(2)[:31]) == [1]
    assert walk.find_chain(objects, PREFIX, b"") == []


def test_a_prefix_that_no_key_can_have_is_refused(walk: ModuleType) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        walk.find_chain({}, "kv/é/", digest(1))


@pytest.mark.parametrize("arguments", [([], PREFIX, b""), ({}, b"kv/", b""), ({}, PREFIX, "text"), ({}, PREFIX)])
def test_c_refuses_what_it_cannot_walk_over(arguments: tuple[object, ...]) -> None:
    native = pytest.importorskip("kvgate.native", reason="needs a C compiler and Python's headers, then `make native`")
    with pytest.raises(TypeError):
        native.find_chain(*arguments)


@pytest.mark.parametrize("sequence", [list, tuple, iter])
def test_leases_are_counted_as_often_as_an_entry_comes(walk: ModuleType, sequence: type) -> None:
    once, twice = entry(), entry()
    walk.add_leases(sequence([once, twice, twice]), 300)
    assert (once.leases, twice.leases) == (300, 600)
    walk.add_leases(sequence([once, twice]), -1)
    assert (once.leases, twice.leases) == (299, 599)
    walk.add_leases(sequence([]), 1)


def test_leases_of_what_has_none_are_refused(walk: ModuleType) -> None:
    bare = object.__new__(Entry)
    for wrong in (object(), None, bare):
        counted = entry()
        with pytest.raises((TypeError, AttributeError)):
            walk.add_leases([counted, wrong], 1)
        assert counted.leases == 1
    with pytest.raises(TypeError):
        walk.add_leases([entry()], "1")
