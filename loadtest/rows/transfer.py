"""GET and PUT of whole objects, against bare TCP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from bed import Bed
from figures import Figure
from peers.base import OBJECTS

SIZES = {"256K": 256 << 10, "1M": 1 << 20, "4M": 4 << 20, "32M": 32 << 20}
QUICK_SIZES = ("256K", "4M")
CONNECTIONS = (1, 8)
RIVALS = ("redis", "valkey", "nginx", "seaweedfs")
"""Whom a row of 1 MiB or more must be ahead of."""


def names() -> list[str]:
    """Of all rows, in the order in which they are measured."""
    rows = [f"{verb} {size} x{n}" for size in SIZES for n in CONNECTIONS for verb in ("GET", "PUT")]
    return [*rows, CHECKED]


CHECKED = "PUT 4M x8 crc64nvme"


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    for size, nbytes in SIZES.items():
        if bed.quick and size not in QUICK_SIZES:
            continue
        rows = [(verb, count, f"{verb} {size} x{count}") for count in CONNECTIONS for verb in ("PUT", "GET")]
        rows = [row for row in rows if wanted(row[2])]
        if rows or (size == "4M" and wanted(CHECKED)):
            fill(bed, nbytes)
        for verb, connections, row in rows:
            contenders = {
                name: bed.transfer(name, partial(getattr(peer, verb.lower()), nbytes), connections)
                for name, peer in bed.peers.items()
            }
            figures = bed.measure(row, "GB/s", contenders, limit="raw")
            set_goals(verb, nbytes, connections, figures)
    if wanted(CHECKED):
        exchange = bed.kvgate.checked_put(SIZES["4M"])
        contenders = {
            "raw": bed.transfer("raw", partial(bed.peers["raw"].put, SIZES["4M"]), 8),
            "kvgate": bed.transfer("kvgate", lambda: exchange, 8),
        }
        figures = bed.measure(CHECKED, "GB/s", contenders, limit="raw")
        set_goals("PUT", SIZES["4M"], 8, figures)


def fill(bed: Bed, nbytes: int, names: Sequence[str] = ()) -> None:
    """Store the objects of a size on every server, or on those that are named."""
    for name, peer in list(bed.peers.items()):
        if names and name not in names:
            continue
        try:
            exchange = peer.put(nbytes)
            bed.driver.once(peer.port, replace(exchange, heads=exchange.heads[:OBJECTS]), 4)
        except RuntimeError as error:
            reason = f"it does not take objects of {nbytes} bytes: {error}"
            if name in ("raw", "kvgate"):
                bed.fail(name, reason)
            else:
                bed.drop(name, reason)


def set_goals(verb: str, nbytes: int, connections: int, figures: dict[str, Figure]) -> None:
    """Say what kvgate should reach in such a row."""
    mine = figures.get("kvgate")
    if mine is None:
        return
    if connections == 8 and nbytes >= 4 << 20:
        mine.want_of_limit(0.9 if verb == "GET" else 0.85)
        if verb == "PUT":
            mine.want_cpu(0.30)
        elif nbytes == 4 << 20:
            mine.want_cpu(0.22)
    if connections == 8 and nbytes == 256 << 10 and verb == "GET":
        mine.want_of_limit(0.6)
    if connections == 1 and nbytes == 4 << 20:
        mine.want_of_limit(0.7)
    if connections == 1 and nbytes == 256 << 10 and verb == "GET":
        other = figures.get("memcached")
        mine.want("p50 <= 1.25 x memcached's", None if other is None else mine.p50_us <= 1.25 * other.p50_us)
    rivals = [figures[name] for name in RIVALS if name in figures]
    if nbytes >= 1 << 20 and rivals:
        names = ", ".join(rival.contender for rival in rivals)
        mine.want(f"ahead of {names}", mine.value > max(rival.value for rival in rivals))
