"""TCP congestion control for the time of a run: what paces a wide-area network only delays loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

SETTING = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@contextlib.contextmanager
def reno() -> Iterator[str]:
    """Have every server use reno while this lasts, where that may be set; yields what holds, in words.

    kvgate, the client and the raw peer choose it for their own loopback sockets; the other servers take the system's.
    """
    before = SETTING.read_text().strip() if SETTING.exists() else ""
    if before == "reno":
        yield "reno, as the system has it"
        return
    try:
        SETTING.write_text("reno")
    except OSError:
        yield f"{before or 'not known'} for the other servers (reno can be set by root alone), reno for kvgate and raw"
        return
    try:
        yield f"reno for this run ({before} otherwise)"
    finally:
        SETTING.write_text(before)
