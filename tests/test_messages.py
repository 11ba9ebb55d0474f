from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.messages import Headers

NAMES = st.sampled_from(["a", "b", "host", "x-amz-date"])
PAIRS = st.lists(st.tuples(NAMES, st.text("xyz ", max_size=3)), max_size=8)


@settings(deadline=None)
@given(PAIRS, st.frozensets(NAMES))
def test_headers_are_a_multi_map_in_the_order_received(pairs: list[tuple[str, str]], names: frozenset[str]) -> None:
    every: dict[str, list[str]] = {}
    for name, value in pairs:
        every.setdefault(name, []).append(value)
    for headers in (Headers((name.upper(), value) for name, value in pairs), Headers.lowered(pairs)):
        assert list(headers.items()) == [(name, value) for name, values in every.items() for value in values]
        assert list(headers.names()) == list(every)
        for name in ("a", "b", "host", "x-amz-date", "absent"):
            values = every.get(name, [])
            assert headers.getall(name) == values
            assert headers.get(name) == (values[0] if values else "")
            assert headers.get(name, "else") == (values[0] if values else "else")
            assert headers.joined(name) == ",".join(values)
            assert headers.is_repeated(name) is (len(values) > 1)
            assert (name in headers) is (name in every)
        assert headers.has_any(names) is bool(names & every.keys())
        assert headers.all_among(names) is (every.keys() <= names)
