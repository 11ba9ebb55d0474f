"""Traces of LLM requests: the prompts as numbers of their blocks, in JSON lines of one of two forms.

Mooncake's:

    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 13]}

timestamp:  milliseconds since the begin of the trace
hash_ids:   one a block of 512 tokens of the prompt, the last of which may be cut short; equal ids mean equal blocks
            behind equal prefixes

What `kvgate record` writes, a line for each call of a gateway:

    {"kvgate": 1}
    {"ms": 12, "tenant": 0, "match": [0, 1, 2, 3], "found": 2, "tokens": 256}
    {"ms": 40, "tenant": 0, "put": 2, "nbytes": 33558528}
    {"ms": 90, "tenant": 0, "get": 7}
    {"ms": 60000, "end": "time"}

ms:     milliseconds since the begin of the recording
match:  the chunks of one prompt, the first `found` of which were there; each is of `tokens` tokens, 0 where that is
        not known
put, get: an object that is written or read

A match says of a prompt all that a replay needs: the puts and gets of the same chunks that follow it belong to the same
use. Other objects that are read are prompts of one block, which a replay writes when it does not find them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvgate.errors import KVGateError

BLOCK_TOKENS = 512
RECORDING_VERSION = 1
MAX_LINE_NBYTES = 1 << 20


class BadTrace(KVGateError):
    """A line that is no request; the message names file, line and field."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt."""

    timestamp_ms: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    block_tokens: int = BLOCK_TOKENS

    def hit_tokens(self, found: int) -> int:
        """The tokens of the prompt that `found` leading blocks hold."""
        return min(found * self.block_tokens, self.input_tokens)


def read_trace(path: Path, limit: int | None = None) -> list[Request]:
    """The requests of a trace, which may be gzipped, at most `limit`. Raises BadTrace and OSError."""
    requests: list[Request] = []
    recording: Recording | None = None
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        number = 0
        while (limit is None or len(requests) < limit) and (line := lines.readline(MAX_LINE_NBYTES + 1)):
            number += 1
            if len(line) > MAX_LINE_NBYTES:
                raise BadTrace(f"{path}, line {number}: it is longer than {MAX_LINE_NBYTES} bytes")
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            fields = _fields(line, where)
            if number == 1 and "kvgate" in fields:
                recording = Recording(fields, where)
            elif recording is None:
                requests.append(_request(fields, where))
            elif (request := recording.request(fields, where)) is not None:
                requests.append(request)
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


class Recording:
    """Reads the lines behind the first of what `kvgate record` wrote."""

    def __init__(self, fields: dict[str, object], where: str) -> None:
        if fields["kvgate"] != RECORDING_VERSION:
            raise BadTrace(f"{where}: kvgate: expected a recording of version {RECORDING_VERSION}")
        self._matched: set[int] = set()

    def request(self, fields: dict[str, object], where: str) -> Request | None:
        """The prompt that a line tells of; None for one that belongs to an earlier prompt, or asks for nothing."""
        ms = _milliseconds(fields, "ms", where)
        if "match" in fields:
            blocks = _blocks(fields, "match", where)
            self._matched.update(blocks)
            tokens = _count(fields, "tokens", where) or 1
            return Request(ms, tokens * len(blocks), 0, blocks, tokens) if blocks else None
        if "get" in fields:
            block = _count(fields, "get", where)
            return None if block in self._matched else Request(ms, 1, 0, (block,), 1)
        if "end" not in fields:
            _count(fields, "put", where)
        return None


def _fields(line: bytes, where: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise BadTrace(f"{where}: it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadTrace(f"{where}: expected an object of timestamp, input_length, output_length and hash_ids")
    return fields


def _request(fields: dict[str, object], where: str) -> Request:
    return Request(
        _milliseconds(fields, "timestamp", where),
        _count(fields, "input_length", where),
        _count(fields, "output_length", where),
        _blocks(fields, "hash_ids", where),
    )


def _milliseconds(fields: dict[str, object], name: str, where: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise BadTrace(f"{where}: {name}: expected milliseconds, got {value!r:.40}")
    return value


def _blocks(fields: dict[str, object], name: str, where: str) -> tuple[int, ...]:
    blocks = fields.get(name)
    if not isinstance(blocks, list) or not all(type(block) is int and block >= 0 for block in blocks):
        raise BadTrace(f"{where}: {name}: expected a list of whole numbers")
    return tuple(blocks)


def _count(fields: dict[str, object], name: str, where: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise BadTrace(f"{where}: {name}: expected a number of tokens, got {value!r:.40}")
    return value
