"""HTTP messages as the protocol layers see them, independent of the server that carries them.

`Request.raw_path` and `raw_query` are the bytes of the request target as sent, undecoded: signatures and keys need
exactly these. Header names are lower case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvgate.errors import Overloaded


class Headers:
    """An immutable multi-map of lower-case header names to values, in the order received."""

    __slots__ = ("_first", "_repeated")

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._take([(name.lower(), value) for name, value in items])

    @classmethod
    def lowered(cls, pairs: Sequence[tuple[str, str]]) -> Headers:
        """As `Headers(pairs)`, of pairs whose names are in lower case already."""
        headers = cls.__new__(cls)
        headers._take(pairs)
        return headers

    def _take(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._first = dict(pairs)
        self._repeated: dict[str, list[str]] = {}  # every value of a name that comes more than once
        if len(self._first) != len(pairs):
            every: dict[str, list[str]] = {}
            for name, value in pairs:
                every.setdefault(name, []).append(value)
            self._repeated = {name: values for name, values in every.items() if len(values) > 1}
            self._first |= {name: values[0] for name, values in self._repeated.items()}

    def get(self, name: str, default: str = "") -> str:
        """The first value of a header, or `default`."""
        return self._first.get(name, default)

    def getall(self, name: str) -> list[str]:
        """Every value of a header, in the order received."""
        if name in self._repeated:
            return self._repeated[name]
        return [self._first[name]] if name in self._first else []

    def repeats_any(self, names: frozenset[str]) -> bool:
        """Whether one of these headers was sent more than once."""
        return bool(self._repeated) and not names.isdisjoint(self._repeated)

    def joined(self, name: str) -> str:
        """Every value of a header with commas between them; empty when it was not sent."""
        if self._repeated and name in self._repeated:
            return ",".join(self._repeated[name])
        return self._first.get(name, "")

    def is_repeated(self, name: str) -> bool:
        """Whether a header was sent more than once."""
        return name in self._repeated

    def names(self) -> Iterable[str]:
        """Every name, once."""
        return self._first.keys()

    def all_among(self, names: frozenset[str]) -> bool:
        """Whether no other headers than these were sent."""
        return names.issuperset(self._first)

    def has_any(self, names: frozenset[str]) -> bool:
        """Whether one of these headers was sent."""
        return not names.isdisjoint(self._first)

    def items(self) -> Iterable[tuple[str, str]]:
        """Every (name, value), repeated names together."""
        if not self._repeated:
            return self._first.items()
        return ((name, value) for name in self._first for value in self.getall(name))

    def __contains__(self, name: str) -> bool:
        return name in self._first


Consume = Callable[[memoryview], None]
"""Takes the next bytes of a body, once: a view that is valid during the call. May be called in any one thread.

One with a method `receive`, as kvgate.native.BlockDigest has, may be asked to take bytes off a socket by itself.
"""


class RequestBody(Protocol):
    """The payload of a request, as it arrives."""

    async def readinto(self, view: memoryview) -> int:
        """Fill the beginning of `view` with the next bytes and return how many (≥ 1), or 0 at the end.

        Raises IncompleteBody when the peer goes away before the promised length.
        """


class ScatteredBody(RequestBody, Protocol):
    """A body whose bytes can be received into many places at once, off the event loop."""

    async def fill(self, views: Sequence[memoryview], consume: Consume, *, slow: bool = False) -> int:
        """Fill `views`, one after the other, with the next bytes and return how many: fewer only at the end.

        Each piece is shown to `consume` as it has arrived, in order; `slow` tells that it takes long, as a
        cryptographic hash does. When this returns, raises or is cancelled, nobody touches the views any more.
        Raises IncompleteBody, and what `consume` raises.
        """


OFF_LOOP_NBYTES = 128 << 10
"""To hash or decode more than this takes longer than handing it to a thread."""


async def fill(body: RequestBody, views: Sequence[memoryview], consume: Consume, *, slow: bool = False) -> int:
    """`ScatteredBody.fill` of any body."""
    scatter = getattr(body, "fill", None)
    if scatter is not None:
        filled: int = await scatter(views, consume, slow=slow)
        return filled
    total = 0
    for view in views:
        done = 0
        while done < len(view):
            received = await body.readinto(view[done:])
            if not received:
                return total
            piece = view[done : done + received]
            if slow and received > OFF_LOOP_NBYTES:
                await consume_in_thread(consume, piece)
            else:
                consume(piece)
            done += received
            total += received
    return total


async def consume_in_thread(consume: Consume, view: memoryview) -> None:
    """Run `consume(view)` in a thread; it has ended when this returns, raises or is cancelled."""
    thread = asyncio.get_running_loop().run_in_executor(None, consume, view)
    cancelled: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait([thread])
        except asyncio.CancelledError as error:
            cancelled = error
    failure = thread.exception()
    if cancelled is not None:
        raise cancelled
    if failure is not None:
        raise failure


class EmptyBody:
    """A request body of no bytes."""

    async def readinto(self, view: memoryview) -> int:
        return 0


class Buffers:
    """A limit of the bytes of bodies that are being read into buffers, over all requests."""

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self._nbytes = 0

    @contextlib.contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        """Count a buffer of at most `nbytes` while it is read. Raises Overloaded when there would be too many."""
        if self._nbytes + nbytes > self._limit_nbytes:
            raise Overloaded("too many bodies are on their way in; try again")
        self._nbytes += nbytes
        try:
            yield
        finally:
            self._nbytes -= nbytes


_BUFFERS = Buffers(256 << 20)


@dataclass(slots=True)
class Request:
    """One request: an undecoded target, headers and a body that has not been read.

    bucket:       what the listener that it came by is bound to; empty when the request names its bucket itself
    exact_ranges: whether a range that ends behind the end of its object is to be refused
    buffers:      what is to be asked before the body is read into a buffer
    """

    method: str
    raw_path: str
    raw_query: str = ""
    headers: Headers = field(default_factory=Headers)
    body: RequestBody = field(default_factory=EmptyBody)
    bucket: str = ""
    exact_ranges: bool = False
    buffers: Buffers = _BUFFERS


class ResponseBody(Protocol):
    """A payload that the server sends and then closes; it owns whatever lease its bytes need."""

    @property
    def nbytes(self) -> int | None:
        """Its length; None when that is not known before the end, and HTTP then carries the body in chunks."""

    def batches(self) -> AsyncIterator[Sequence[memoryview]]:
        """The bytes in order, as many at once as there are. A batch is valid until the next is asked for, or `close`.

        May be sent in another thread meanwhile; whoever closes the body has ended that first.
        """

    def close(self) -> None:
        """Give back what the body holds. May be called twice; must be called once."""


async def views(body: ResponseBody, most_nbytes: int = 1 << 20) -> AsyncIterator[memoryview]:
    """The bytes of a body one after the other, in views of at most `most_nbytes`."""
    async for batch in body.batches():
        for view in batch:
            for start in range(0, len(view), most_nbytes):
                yield view[start : start + most_nbytes]


async def http_chunks(body: ResponseBody) -> AsyncIterator[Sequence[memoryview]]:
    """The batches of a body in the chunked transfer coding of HTTP/1.1 (RFC 9112, section 7.1), one chunk a batch."""
    ending = b""
    async for batch in body.batches():
        if nbytes := sum(map(len, batch)):
            yield [memoryview(ending + b"%x\r\n" % nbytes), *batch]
            ending = b"\r\n"
    yield [memoryview(ending + b"0\r\n\r\n")]


@dataclass(slots=True)
class Response:
    """One response. `body` is bytes, or a ResponseBody whose `nbytes` become the Content-Length.

    For HEAD, `content_length` states the length of the body that GET would send.
    `operation` is the name of what was answered, for the metrics.
    `published`: whether the native plane may answer such a request from now on.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | ResponseBody = b""
    content_length: int | None = None
    operation: str = ""
    published: bool = False
