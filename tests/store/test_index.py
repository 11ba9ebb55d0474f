from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvgate.errors import NoSuchBucket
from kvgate.store.index import Bucket, Entry, Index, Listing
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
