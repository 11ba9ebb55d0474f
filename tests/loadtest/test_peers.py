"""Every server that is measured returns the bytes that it was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bed import PEERS
from driver import Driver
from peers.base import OBJECTS, Absent
from processes import accepts, cpu_s, rss_nbytes, tree


@pytest.mark.parametrize("name", list(PEERS))
def test_a_server_returns_what_was_put(name: str, driver: Driver, tmp_path: Path) -> None:
    peer = PEERS[name](tmp_path / name)
    try:
        try:
            peer.start()
        except Absent as reason:
            pytest.skip(str(reason))
        for nbytes in (256 << 10, 1 << 20):
            put = peer.put(nbytes)
            assert driver.once(peer.port, replace(put, heads=put.heads[:OBJECTS]), 4).exchanges == OBJECTS
            got = driver.run(peer.port, peer.get(nbytes), 2, 0.05)
            assert got.received_nbytes >= got.exchanges * nbytes
        assert driver.run(peer.port, peer.head(), 2, 0.05).exchanges > 2
        assert rss_nbytes(peer.pid) > 0
        assert cpu_s(peer.pid) > 0
        below = tree(peer.pid)
    finally:
        peer.stop()
    assert not accepts(peer.port)
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
