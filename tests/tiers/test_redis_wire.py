from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, OutOfMemoryError, RedisError, ResponseError

from kvgate.errors import CorruptCopy
from kvgate.tiers.redis_wire import Wire

PATIENCE_S = 60.0

VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=100), st.just(bytes(70_000))),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


def encoded(value: Any) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(encoded, value))
    return b"$%d\r\n%s\r\n" % (len(value), value)


def with_answer(answer: bytes, cuts: list[int], use: Callable[[Wire], Awaitable[Any]], *, end: bool = False) -> Any:
    """What `use` makes of a connection to a server that answers in pieces, cut at `cuts`, and may then hang up."""

    async def exchange() -> Any:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(Wire, sock=ours)
        theirs.setblocking(False)

        async def serve() -> None:
            ends = sorted({min(cut, len(answer)) for cut in cuts} | {len(answer)})
            for begin, stop in zip([0, *ends], ends, strict=False):
                await loop.sock_sendall(theirs, answer[begin:stop])
                await asyncio.sleep(0)
            if end:
                theirs.close()

        serving = asyncio.create_task(serve())
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await use(wire)
        finally:
            wire.abort()
            await asyncio.gather(serving, return_exceptions=True)
            await wire.wait_closed()
            theirs.close()

    return asyncio.run(exchange())


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6), st.lists(st.integers(0, 1000), max_size=8))
def test_replies_are_read_however_they_arrive(values: list[Any], cuts: list[int]) -> None:
    async def use(wire: Wire) -> list[Any]:
        for _ in values:
            wire.send(b"X")
        replies = [await wire.reply() for _ in values]
        assert wire.clean
        return replies

    assert with_answer(b"".join(map(encoded, values)), cuts, use) == values


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=5000), st.just(bytes(100_000))), max_size=5),
    st.lists(st.integers(0, 1000), max_size=8),
    st.integers(1, 4000),
)
def test_strings_are_received_into_views(values: list[bytes | None], cuts: list[int], size: int) -> None:
    async def use(wire: Wire) -> list[bytes | None]:
        got: list[bytes | None] = []
        for _ in values:
            wire.send(b"X")
        for value in values:
            target = bytearray(len(value or b"xx"))
            views = [memoryview(target)[at : at + size] for at in range(0, len(target), size)]
            got.append(bytes(target) if await wire.receive(views) else None)
        assert wire.clean
        return got

    assert with_answer(b"".join(map(encoded, values)), cuts, use) == values


@settings(max_examples=30, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text("$*+-:0123456789\r\n", max_size=40).map(str.encode)))
def test_whatever_a_server_says_ends_in_an_answer_or_an_error(answer: bytes) -> None:
    async def use(wire: Wire) -> None:
        wire.send(b"X")
        wire.send(b"X")
        try:
            await wire.reply()
            await wire.receive([memoryview(bytearray(3))])
        except (RedisError, CorruptCopy):
            assert not wire.clean

    with_answer(answer, [], use, end=True)


def test_an_error_is_a_value_and_the_reply_behind_it_is_read() -> None:
    async def use(wire: Wire) -> None:
        for _ in range(3):
            wire.send(b"X")
        first, second, third = [await wire.reply() for _ in range(3)]
        assert isinstance(first, OutOfMemoryError)
        assert type(second) is ResponseError
        assert third == b"OK"
        assert wire.clean

    with_answer(b"-OOM command not allowed\r\n-ERR what\r\n+OK\r\n", [], use)


@pytest.mark.parametrize("answer", [b"+OK\r\n+OK\r\n", b"+OK\r\n$1"])
def test_what_nobody_asked_for_makes_a_connection_unclean(answer: bytes) -> None:
    async def use(wire: Wire) -> None:
        wire.send(b"X")
        assert await wire.reply() == b"OK"
        while wire.clean:  # it may not have come yet
            await asyncio.sleep(0)

    with_answer(answer, [5], use)


@pytest.mark.parametrize(
    "answer",
    [b"$99999999999\r\n", b"*99999999999\r\n", b"*1\r\n" * 100, b"x" * 100_000, b"$1\r\nabc", b":x\r\n", b"\r\n"],
)
def test_answers_are_bounded(answer: bytes) -> None:
    async def use(wire: Wire) -> None:
        wire.send(b"X")
        with pytest.raises(InvalidResponse):
            await wire.reply()
        assert not wire.clean

    with_answer(answer, [], use)


def test_a_lost_connection_is_an_error_for_who_waits_and_who_comes_later() -> None:
    async def use(wire: Wire) -> None:
        wire.send(b"X")
        with pytest.raises(RedisConnectionError, match="connection"):
            await wire.reply()
        wire.send(b"X")
        with pytest.raises(RedisConnectionError, match="connection"):
            await wire.flushed()
        assert not wire.clean

    with_answer(b"$10\r\nabc", [], use, end=True)
