"""What two workers say to each other once they know each other.

    decode → prefill   Want, Cancel
    prefill → decode   Landed, Stopped
    both               Ping, Retiring

Each Want ends with exactly one Landed or Stopped, or with the connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine_adapters.nixl import wire
from engine_adapters.nixl.errors import MalformedMessage
from engine_adapters.nixl.layout import MAX_BLOCKS, MAX_GROUPS, BlockRun

MAX_REQUEST_ID = 512
MAX_TRANSFER_BLOCKS = 1 << 18
"""Blocks of one transfer in all groups, so that every message fits a frame."""

_MAX_REASON = 512
_MAX_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Want:
    """Write the KV of a request into these blocks of mine. `number` names the transfer on this connection."""

    number: int
    request_id: str
    deadline_ms: int
    blocks: tuple[BlockRun, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Write no more of a transfer, and say when that is so."""

    number: int


@dataclass(frozen=True, slots=True)
class Landed:
    """All bytes are where they were wanted. `digests`: the crc64nvme of each block, group after group; or none."""

    number: int
    digests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stopped:
    """The transfer has failed. `clean`: nothing of it is under way any more."""

    number: int
    reason: str
    clean: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """I am here."""


@dataclass(frozen=True, slots=True)
class Retiring:
    """My agent goes when its transfers have ended; for others, connect again."""


Message = Want | Cancel | Landed | Stopped | Ping | Retiring

_KINDS: dict[type[Message], int] = {Want: 1, Cancel: 2, Landed: 3, Stopped: 4, Ping: 5, Retiring: 6}


def encode(message: Message) -> bytes:
    """The body of a message."""
    kind = _KINDS[type(message)]
    match message:
        case Want(number, request_id, deadline_ms, blocks):
            runs = [[run.first, list(run.ids)] for run in blocks]
            return wire.pack([kind, number, request_id, deadline_ms, runs])
        case Cancel(number):
            return wire.pack([kind, number])
        case Landed(number, digests):
            return wire.pack([kind, number, list(digests)])
        case Stopped(number, reason, clean):
            return wire.pack([kind, number, reason[:_MAX_REASON], clean])
        case _:
            return wire.pack([kind])


def decode(body: bytes) -> Message:
    """Raises MalformedMessage."""
    value = wire.unpack(body)
    match value:
        case [1, int(number), str(request_id), int(deadline_ms), [*runs]]:
            if not 1 <= len(request_id) <= MAX_REQUEST_ID or not 0 <= deadline_ms <= _MAX_MS or len(runs) > MAX_GROUPS:
                raise MalformedMessage("a Want outside its bounds")
            blocks = tuple(_run(run) for run in runs)
            if sum(len(run.ids) for run in blocks) > MAX_TRANSFER_BLOCKS:
                raise MalformedMessage(f"a Want of more than {MAX_TRANSFER_BLOCKS} blocks")
            return Want(_number(number), request_id, deadline_ms, blocks)
        case [2, int(number)]:
            return Cancel(_number(number))
        case [3, int(number), [*digests]]:
            return Landed(_number(number), _integers(digests, MAX_TRANSFER_BLOCKS, 1 << 64))
        case [4, int(number), str(reason), bool(clean)]:
            return Stopped(_number(number), reason[:_MAX_REASON], clean)
        case [5]:
            return Ping()
        case [6]:
            return Retiring()
        case _:
            raise MalformedMessage("a message of no known kind")


def _run(value: Any) -> BlockRun:
    match value:
        case [int(first), [*ids]] if type(first) is int and 0 <= first < MAX_BLOCKS:
            return BlockRun(first, _integers(ids, MAX_TRANSFER_BLOCKS, MAX_BLOCKS))
        case _:
            raise MalformedMessage("a Want with a run of blocks that is none")


def _integers(values: list[Any], most: int, below: int) -> tuple[int, ...]:
    if len(values) > most or not all(type(value) is int and 0 <= value < below for value in values):
        raise MalformedMessage("a list that is too long, or has other things than numbers in range")
    return tuple(values)


def _number(value: int) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise MalformedMessage("a transfer whose number is none")
    return value
