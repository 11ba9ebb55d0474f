"""The HTTP fronts of one gateway, in turn: aiohttp, our own sockets in Python, and all of it, with the native plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bed import Bed
from driver import Exchange

from rows.head import OBJECT_NBYTES
from rows.transfer import SIZES, fill

CONNECTIONS = 8
AIOHTTP_LINE = b"connection: keep-alive, unusual"
"""An option that only aiohttp's parser takes."""

PYTHON_LINE = b"pragma: no-cache"
"""A header that the native plane leaves to Python."""

TRANSFERS = [(verb, size) for size in ("256K", "4M") for verb in ("PUT", "GET")]


def names() -> list[str]:
    return ["fronts HEAD x8", *[f"fronts {verb} {size} x8" for verb, size in TRANSFERS]]


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    head, *transfers = names()
    if bed.quick:
        return
    if wanted(head):
        fill(bed, OBJECT_NBYTES, ["kvgate"])
        compare(bed, head, "1/s", bed.kvgate.head)
    for row, (verb, size) in zip(transfers, TRANSFERS, strict=True):
        if wanted(row):
            fill(bed, SIZES[size], ["kvgate"])
            make = bed.kvgate.get if verb == "GET" else bed.kvgate.put
            compare(bed, row, "GB/s", lambda make=make, size=size: make(SIZES[size]))


def compare(bed: Bed, row: str, unit: str, make: Callable[[], Exchange]) -> None:
    contenders = {
        "aiohttp": bed.transfer("kvgate", lambda: with_line(make(), AIOHTTP_LINE), CONNECTIONS),
        "python": bed.transfer("kvgate", lambda: with_line(make(), PYTHON_LINE), CONNECTIONS),
        "kvgate": bed.transfer("kvgate", make, CONNECTIONS),
    }
    bed.measure(row, unit, contenders)


def with_line(exchange: Exchange, line: bytes) -> Exchange:
    """The same requests with a header more."""
    heads = [head.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1) for head in exchange.heads]
    return replace(exchange, heads=heads)
