from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvgate.errors import NoSuchBucket
from kvgate.store.index import Bucket, Entry, Index, Listing, around
from kvgate.tiers.base import Record

keys = st.lists(st.text(alphabet="ab/é\U0010ffff", min_size=1, max_size=6), max_size=30, unique=True)
short = st.text(alphabet="ab/é\U0010ffff", max_size=3)
delimiters = st.sampled_from(["", "/", "a", "//", "\U0010ffff"])


def index_of(names: list[str]) -> Index:
    index = Index()
    index.add_bucket("t", Bucket("b", 0))
    for name in names:
        index.put(Entry(Record("t", "b", name, 1, 0, 0), ("copy",)))
    return index


def named(listing: Listing) -> list[str]:
    """Keys and prefixes of a page in one order, a prefix marked by a trailing tab."""
    return sorted([record.key for record in listing.records] + [prefix + "\t" for prefix in listing.prefixes])


def naive(names: list[str], prefix: str, delimiter: str, after: str) -> list[str]:
    """The same by the words of the S3 reference, one key at a time."""
    found = []
    for name in sorted(names, key=lambda text: text.encode()):
        if not name.startswith(prefix) or name <= after:
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            found.append(name)
        elif (rolled := name[: cut + len(delimiter)]) != after:
            found.append(rolled + "\t")
    return sorted(set(found))


@given(keys, short, delimiters, short)
@example(["a/\U0010ffff", "a/\U0010ffff\U0010ffff", "b"], "", "/", "")
def test_listing_is_that_of_the_reference(names: list[str], prefix: str, delimiter: str, after: str) -> None:
    listing = index_of(names).list("t", "b", prefix, delimiter, after, 1000)
    assert not listing.truncated
    assert named(listing) == naive(names, prefix, delimiter, after)


@given(keys, short, delimiters, st.integers(1, 4))
def test_pages_make_up_the_whole(names: list[str], prefix: str, delimiter: str, limit: int) -> None:
    index = index_of(names)
    pages: list[str] = []
    after = ""
    while True:
        page = index.list("t", "b", prefix, delimiter, after, limit)
        assert len(named(page)) <= limit
        pages += named(page)
        if not page.truncated:
            break
        assert len(named(page)) == limit
        assert page.next_after > after
        after = page.next_after
    assert sorted(pages) == naive(names, prefix, delimiter, "")
    assert len(pages) == len(set(pages))


def test_new_version_takes_the_place_of_the_old() -> None:
    index = index_of(["k"])
    old = index.get("t", "b", "k")
    new = Entry(Record("t", "b", "k", 2, 0, 0), ("copy",))
    assert index.put(new) is old
    assert old is not None
    assert (old.current, new.current) == (False, True)
    index.remove(new)
    assert index.get("t", "b", "k") is None
    with pytest.raises(NoSuchBucket):
        index.get("other", "b", "k")


def _changes(tiers: int) -> st.SearchStrategy[tuple[int, int | None]]:
    return st.tuples(st.integers(0, tiers - 1), st.none() | st.integers(0, 3))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 4).flatmap(lambda tiers: st.tuples(st.just(tiers), st.lists(_changes(tiers), max_size=12))))
def test_an_entry_says_what_it_was_told_of_every_tier(case: tuple[int, list[tuple[int, int | None]]]) -> None:
    tiers, changes = case
    model: list[int | None] = [None] * tiers
    entry = Entry(Record("t", "b", "k", 1, 0, 0), tuple(model))
    for rank, copy in changes:
        model[rank] = copy
        entry.set_copy(rank, copy)
        assert entry.copies == tuple(model)
        for asked in range(tiers):
            assert entry.has_copy(asked) == (model[asked] is not None)
        assert entry.has_copy(*range(tiers)) == any(held is not None for held in model)
        assert not entry.has_copy()
        there = [rank for rank in range(tiers) if model[rank] is not None]
        assert entry.ranks == sum(1 << rank for rank in there)
        assert entry.fastest() == (there[0] if there else None)


def test_an_entry_made_of_its_only_copy_is_like_one_that_was_given_all() -> None:
    for tiers in (1, 2, 3):
        for rank in range(tiers):
            entry = Entry(Record("t", "b", "k", 1, 0, 0), "copy", around(rank, tiers))
            assert entry.copies == tuple("copy" if each == rank else None for each in range(tiers))
            assert (entry.ranks, entry.fastest()) == (1 << rank, rank)
