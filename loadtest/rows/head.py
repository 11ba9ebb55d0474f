"""How many questions about an object are answered a second; the limit is an exchange of 16 bytes for one over TCP."""

from __future__ import annotations

from collections.abc import Callable

from bed import Bed

from rows.transfer import fill

SIGNED, TOKEN = "HEAD x8", "HEAD x8 session token"
CONNECTIONS, THREADS = 8, 1
OBJECT_NBYTES = 4096


def names() -> list[str]:
    return [SIGNED, TOKEN]


def measure(bed: Bed, wanted: Callable[[str], bool]) -> None:
    if wanted(SIGNED) or wanted(TOKEN):
        fill(bed, OBJECT_NBYTES)
    if wanted(SIGNED):
        contenders = {name: bed.transfer(name, peer.head, CONNECTIONS, THREADS) for name, peer in bed.peers.items()}
        if mine := bed.measure(SIGNED, "1/s", contenders, limit="raw").get("kvgate"):
            cost = mine.server_us_per_operation
            mine.want(">= 20,000/s", mine.value >= 20_000)
            mine.want("server CPU <= 45 us each", None if cost is None else cost <= 45)
    if wanted(TOKEN):
        try:
            exchange = bed.kvgate.token_head()
        except RuntimeError as error:
            bed.skip(TOKEN, str(error))
            return
        contenders = {
            "raw": bed.transfer("raw", bed.peers["raw"].head, CONNECTIONS, THREADS),
            "kvgate": bed.transfer("kvgate", lambda: exchange, CONNECTIONS, THREADS),
        }
        if mine := bed.measure(TOKEN, "1/s", contenders, limit="raw").get("kvgate"):
            mine.want(">= 45,000/s", mine.value >= 45_000)
