"""Shared memory against the limit of the machine: the hand-off against a bare ping-pong, the load against memcpy.

    python loadtest/shm.py

Starts a gateway in a process of its own, attaches, and measures in turn, in one run: what one exchange over a unix
socket takes between two processes that do nothing, what a grant takes, and loads of 1 to 64 MiB against a memcpy of the
same bytes into the same buffer. All memory has been touched before. `verified` is what a client gets: copied, each MiB
held against its digest, and the grant looked at afterwards; `copied` leaves the digests out. Then slices of a chunk of
32 MiB, as ranks load them, against the whole chunk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gateway import ACCESS_KEY, BUCKET, SECRET_KEY, Gateway

from kvgate.auth.sigv4 import Credential
from kvgate.chunk.layout import DATA_START, Layout, Strided
from kvgate.client.local import Attachment, Grant
from kvgate.client.sync import Client
from kvgate.http.deadline import Deadline
from kvgate.memory.mapping import address_of

MiB = 1 << 20
SIZES = (1, 4, 32, 64)
CHUNK = Layout(16, 2, 8, 512, 128, "BF16")
_PEER = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while frame := sock.recv(65536):
    sock.send(frame)
"""


def measure(
    url: str,
    access_key: str = ACCESS_KEY,
    secret_key: str = SECRET_KEY,
    bucket: str = BUCKET,
    *,
    rounds: int = 5,
    calls: int = 2000,
) -> dict[str, Any]:
    """What shared memory does at a gateway on this host: `hand_off` in µs, and a row of `loads` for each size.

    hand_off: p50_us and p99_us of a grant, bare_p50_us of a bare exchange in the same run
    loads:    mib, memcpy_gb_s, verified_gb_s, copied_gb_s, and the ratios of both to memcpy, medians over the rounds
    slices:   of a chunk of 32 MiB: its name, mib, ms, and the ratio of that to the ms of the whole chunk
    Raises GatewayError where the gateway hands no memory on.
    """
    with Client(url, access_key, secret_key, deadline_s=60) as client:
        ways = client.tenant().local
        path = ways.shm_socket if ways else ""
        attachment = Attachment(path, Credential(access_key, secret_key), Deadline(10))
        try:
            return {
                "hand_off": _hand_off(client, attachment, bucket, rounds, calls),
                "loads": [_load(client, attachment, bucket, mib, rounds) for mib in SIZES],
                "slices": _slices(client, attachment, bucket, rounds),
            }
        finally:
            attachment.close()


def _hand_off(client: Client, attachment: Attachment, bucket: str, rounds: int, calls: int) -> dict[str, float]:
    client.put(bucket, "shm-hand-off", os.urandom(64 << 10))
    deadline = Deadline(600)
    bare, times = [], []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer = subprocess.Popen([sys.executable, "-c", _PEER, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        for _ in range(rounds):
            bare += [_seconds(lambda: (ours.send(bytes(60)), ours.recv(4096))) for _ in range(calls // rounds)]
            for _ in range(calls // rounds):
                began = time.perf_counter()
                grant = attachment.get(bucket, "shm-hand-off", deadline)
                times.append(time.perf_counter() - began)
                _granted(grant).release()
    finally:
        ours.close()
        peer.wait()
    times.sort()
    return {
        "p50_us": round(statistics.median(times) * 1e6, 1),
        "p99_us": round(times[int(len(times) * 0.99)] * 1e6, 1),
        "bare_p50_us": round(statistics.median(bare) * 1e6, 1),
    }


def _load(client: Client, attachment: Attachment, bucket: str, mib: int, rounds: int) -> dict[str, float]:
    nbytes, key, deadline = mib * MiB, f"shm-load-{mib}", Deadline(600)
    source, target = memoryview(bytearray(os.urandom(MiB) * mib)), memoryview(bytearray(nbytes))
    client.put(bucket, key, source)
    times: dict[str, list[float]] = {"memcpy": [], "verified": [], "copied": []}

    def verified() -> None:
        with _granted(attachment.get(bucket, key, deadline)) as grant:
            grant.copy_into(target, deadline)

    def copied() -> None:
        with _granted(attachment.get(bucket, key, deadline)) as grant:
            start = address_of(target)
            for mapping, offset, length in grant._pieces:
                ctypes.memmove(start, mapping.address + offset, length)
                start += length
            assert grant.holds

    ways: dict[str, Callable[[], object]] = {
        "memcpy": lambda: ctypes.memmove(address_of(target), address_of(source), nbytes),
        "verified": verified,
        "copied": copied,
    }
    for way in ways.values():
        way()
    for _ in range(rounds * 4):
        for name, way in ways.items():
            times[name].append(_seconds(way))
    assert target == source
    median = {name: statistics.median(values) for name, values in times.items()}
    client.delete(bucket, key)
    return {
        "mib": mib,
        **{f"{name}_gb_s": round(nbytes / value / 1e9, 2) for name, value in median.items()},
        "verified_ratio": round(median["memcpy"] / median["verified"], 2),
        "copied_ratio": round(median["memcpy"] / median["copied"], 2),
    }


def _slices(client: Client, attachment: Attachment, bucket: str, rounds: int) -> list[dict[str, Any]]:
    client.put(bucket, "shm-chunk", [bytes(DATA_START), os.urandom(MiB) * (CHUNK.nbytes // MiB)])
    deadline, target = Deadline(600), memoryview(bytearray(DATA_START + CHUNK.nbytes))
    cuts: dict[str, Strided | None] = {
        "whole": None,
        "4 of 16 layers": CHUNK.head_slices(range(4, 8), range(8)).in_file(),
        "4 of 8 heads": CHUNK.head_slices(range(16), range(4)).in_file(),
        "1 of 8 heads": CHUNK.head_slices(range(16), range(3, 4)).in_file(),
    }
    times: dict[str, list[float]] = {name: [] for name in cuts}
    for _ in range(rounds * 4):
        for name, runs in cuts.items():
            with _granted(attachment.get(bucket, "shm-chunk", deadline)) as grant:
                times[name].append(_seconds(partial(grant.copy_into, target, deadline, runs)))
    client.delete(bucket, "shm-chunk")
    whole = statistics.median(times["whole"])
    return [
        {
            "slice": name,
            "mib": (CHUNK.nbytes if runs is None else runs.nbytes) / MiB,
            "ms": round(statistics.median(times[name]) * 1e3, 2),
            "ratio": round(statistics.median(times[name]) / whole, 2),
        }
        for name, runs in cuts.items()
    ]


def _granted(found: Grant | int) -> Grant:
    if not isinstance(found, Grant):
        raise SystemExit(f"the gateway granted nothing: reason {found}")
    return found


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvgate-shm-") as folder:
        gateway = Gateway(Path(folder), {"host": {"capacity": "512MiB"}}, listen={"shm_socket": f"{folder}/shm"})
        try:
            gateway.start()
            figures = measure(gateway.url)
        finally:
            gateway.stop()
    hand_off = figures["hand_off"]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    print(f"hand-off p50 {hand_off['p50_us']} µs, p99 {hand_off['p99_us']} µs; bare {hand_off['bare_p50_us']} µs")
    print(f"{'MiB':>4} {'memcpy GB/s':>12} {'verified GB/s':>14} {'ratio':>6} {'copied GB/s':>12} {'ratio':>6}")
    for row in figures["loads"]:
        print(
            f"{row['mib']:>4} {row['memcpy_gb_s']:>12} {row['verified_gb_s']:>14} {row['verified_ratio']:>6} "
            f"{row['copied_gb_s']:>12} {row['copied_ratio']:>6}"
        )
    for row in figures["slices"]:
        print(
            f"{row['slice']:>16} {row['mib']:>5.1f} MiB {row['ms']:>7.2f} ms, {row['ratio']:.2f} of the whole chunk's"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
