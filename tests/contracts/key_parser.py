"""The contract of a key parser: every implementation passes it.

A subclass says which parser it is about, which keys that system writes and what they say, and which keys look like them
but are none. Keys of `accepted` that belong to one run stand next to each other in `runs`.
"""

from __future__ import annotations

import dataclasses
import time
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvgate import plugins
from kvgate.chunk.foreign.base import ForeignKey, KeyParser
from kvgate.chunk.key import MAX_KEY_NBYTES

GROUP = "kvgate.key_parsers"
NOISE = [
    "",
    "/",
    "@",
    "_",
    "kv/",
    "model.safetensors",
    "kv/" + "a" * 64 + "/" + "b" * 64,
    "a/b/c.bin",
    "x@y",
    "notes_1_2",
]
"""Keys of other programs, and of kvgate itself."""

HOSTILE = ["_1", "@1", "a@", "/a", "_", "/", "0", "f", "%25", "_k", "@a%b", "/abc/de_g0", "_0123456789ab_r0"]
"""Repeated to the longest key, these are what a regular expression that backtracks would drown in."""


class KeyParserContract:
    name: ClassVar[str]
    parser: ClassVar[type[KeyParser]]
    accepted: ClassVar[dict[str, ForeignKey]]
    runs: ClassVar[list[tuple[str, str]]]
    refused: ClassVar[list[str]]

    def test_is_an_entry_point(self) -> None:
        assert plugins.load(GROUP, self.name) is self.parser

    def test_reads_the_keys_of_its_system(self) -> None:
        for key, expected in self.accepted.items():
            assert self.parser().parse(key) == expected, key

    def test_different_keys_say_different_things(self) -> None:
        assert len(set(self.accepted.values())) == len(self.accepted)

    def test_keys_of_one_run_differ_in_their_hash_alone(self) -> None:
        assert self.runs
        for first, second in self.runs:
            one, other = self.accepted[first], self.accepted[second]
            assert one.hash != other.hash
            assert dataclasses.replace(one, hash="") == dataclasses.replace(other, hash="")

    def test_refuses_what_its_system_would_not_write(self) -> None:
        for key in [*self.refused, *NOISE]:
            assert self.parser().parse(key) is None, key

    def test_the_whole_key_counts(self) -> None:
        for key in self.accepted:
            for changed in (key + "\n", key + "/", key[:-1] + "\0", "\0" * MAX_KEY_NBYTES + key):
                assert self.parser().parse(changed) != self.accepted[key], changed
            assert self.parser().parse(key + "\n") is None

    def test_no_two_systems_claim_one_key(self) -> None:
        others = [plugins.load(GROUP, name)() for name in plugins.names(GROUP) if name != self.name]
        assert others
        for key in self.accepted:
            assert [other.parse(key) for other in others] == [None] * len(others), key

    @settings(suppress_health_check=[HealthCheck.differing_executors])  # every subclass runs it
    @given(st.data())
    def test_takes_any_text(self, data: st.DataObject) -> None:
        text = st.text(max_size=80) | st.text("0123456789abcdef@_/.-%gr", max_size=120)
        key = data.draw(text)
        said = self.parser().parse(key)
        assert said is None or isinstance(said, ForeignKey)
        example = data.draw(st.sampled_from(sorted(self.accepted)))
        at = data.draw(st.integers(0, len(example)))
        said = self.parser().parse(example[:at] + key[:3] + example[at:])
        assert said is None or isinstance(said, ForeignKey)

    @pytest.mark.parametrize("piece", HOSTILE)
    def test_no_key_takes_long(self, piece: str) -> None:
        parser = self.parser()
        for key in (piece * MAX_KEY_NBYTES, *(example + piece * MAX_KEY_NBYTES for example in self.accepted)):
            for text in (key[:MAX_KEY_NBYTES], key[: MAX_KEY_NBYTES - 4] + ".bin", "a" * 64 + "_" + key[:959]):
                began = time.thread_time()
                parser.parse(text)
                assert time.thread_time() - began < 0.01, text[:80]
