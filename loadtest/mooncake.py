"""Traces of LLM requests: the prompts as hashes of their blocks, in the JSON lines of Mooncake's.

    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 13]}

timestamp:  milliseconds since the begin of the trace
hash_ids:   one a block of 512 tokens of the prompt, the last of which may be cut short; equal ids mean equal blocks
            behind equal prefixes
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK_TOKENS = 512
MAX_LINE_NBYTES = 1 << 20


class BadTrace(Exception):
    """A line that is no request; the message names file, line and field."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt."""

    timestamp_ms: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]

    def hit_tokens(self, found: int) -> int:
        """The tokens of the prompt that `found` leading blocks hold."""
        return min(found * BLOCK_TOKENS, self.input_tokens)


def read_trace(path: Path, limit: int | None = None) -> list[Request]:
    """The requests of a trace, which may be gzipped, at most `limit`. Raises BadTrace and OSError."""
    requests: list[Request] = []
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        number = 0
        while (limit is None or len(requests) < limit) and (line := lines.readline(MAX_LINE_NBYTES + 1)):
            number += 1
            if len(line) > MAX_LINE_NBYTES:
                raise BadTrace(f"{path}, line {number}: it is longer than {MAX_LINE_NBYTES} bytes")
            if line.strip():
                requests.append(_request(line, f"{path}, line {number}"))
    if not requests:
        raise BadTrace(f"{path} holds no request")
    return requests


def prefix_hits(requests: Sequence[Request]) -> Iterator[int]:
    """For each request, how many of its leading blocks came before it: what a cache that forgets nothing finds."""
    seen: set[int] = set()
    for request in requests:
        found = 0
        for block in request.blocks:
            if block not in seen:
                break
            found += 1
        seen.update(request.blocks)
        yield found


def _request(line: bytes, where: str) -> Request:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise BadTrace(f"{where}: it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadTrace(f"{where}: expected an object of timestamp, input_length, output_length and hash_ids")
    timestamp, blocks = fields.get("timestamp"), fields.get("hash_ids")
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float) or not 0 <= timestamp < 1e15:
        raise BadTrace(f"{where}: timestamp: expected milliseconds, got {timestamp!r:.40}")
    if not isinstance(blocks, list) or not all(type(block) is int and block >= 0 for block in blocks):
        raise BadTrace(f"{where}: hash_ids: expected a list of whole numbers")
    return Request(
        timestamp, _count(fields, "input_length", where), _count(fields, "output_length", where), tuple(blocks)
    )


def _count(fields: dict[str, object], name: str, where: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise BadTrace(f"{where}: {name}: expected a number of tokens, got {value!r:.40}")
    return value
