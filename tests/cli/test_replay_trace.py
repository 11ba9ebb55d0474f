"""Traces are read strictly, and their best possible hits are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from kvgate.cli.replays.trace import MAX_LINE_NBYTES, BadTrace, Request, prefix_hits, read_trace
from tests.loadtest.conftest import EXCERPT

LINE = {"timestamp": 12.5, "input_length": 1000, "output_length": 7, "hash_ids": [3, 4]}


def test_the_excerpt_is_read_whole_and_gzipped_alike(tmp_path: Path) -> None:
    requests = read_trace(EXCERPT)
    assert len(requests) == 394
    assert requests[0] == Request(0, 6758, 500, tuple(range(14)))
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(EXCERPT.read_bytes()))
    assert read_trace(packed) == requests
    assert read_trace(packed, limit=5) == requests[:5]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"timestamp": "now"}, "line 2: timestamp"),
        ({"timestamp": -1}, "line 2: timestamp"),
        ({"input_length": 1.5}, "line 2: input_length"),
        ({"output_length": None}, "line 2: output_length"),
        ({"hash_ids": [1, True]}, "line 2: hash_ids"),
        ({"hash_ids": 5}, "line 2: hash_ids"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path: Path, changed: dict[str, object], complaint: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps(LINE | changed)}\n")
    with pytest.raises(BadTrace, match=complaint):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no request"),
        ("[1]", "expected an object"),
        ("{", "not JSON"),
        ("x" * (MAX_LINE_NBYTES + 1), "longer than"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(BadTrace, match=complaint):
        read_trace(path)


def test_a_hit_is_a_prefix_and_the_last_block_may_be_short() -> None:
    requests = [Request(0, 1000, 1, (1, 2)), Request(1, 1500, 1, (1, 9, 2)), Request(2, 1000, 1, (1, 2))]
    assert list(prefix_hits(requests)) == [0, 1, 2]
    assert [requests[1].hit_tokens(found) for found in (0, 1, 3)] == [0, 512, 1500]
