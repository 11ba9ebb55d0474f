"""What it costs to write KV straight into another worker's blocks over UCX tcp, beside a plain socket.

    .cache/vllm/bin/python loadtest/direct.py --transfers 8

Two processes on this host, each with 64 blocks of 1 MiB in 8 regions; a transfer copies all of them, 64 MiB, to other
blocks of the other process. `socket` sends the same bytes region by region over one TCP connection and receives them
into place, and nothing else: no handshake, no request, no digest. The rows take turns; each has one transfer before it
that does not count. CPU is of both processes, all their threads. The interpreter needs NIXL, as .ci/vllm installs it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import socket
import time
from multiprocessing.connection import Connection

import numpy as np

from engine_adapters.nixl import BlockRun, Group, Layout, NixlConfig, Region, Worker
from engine_adapters.nixl.events import Arrived, Event, Sent
from kvgate.config import Secret

REGIONS, BLOCKS, BLOCK_NBYTES = 8, 64, 128 << 10
NBYTES = REGIONS * BLOCKS * BLOCK_NBYTES
ROWS = ("direct, digests", "direct", "socket")


class Memory:
    """Blocks in plain memory, and a worker for each row that needs one."""

    def __init__(self) -> None:
        self.bytes = np.ones((REGIONS, BLOCKS, BLOCK_NBYTES), np.uint8)
        base, span = self.bytes.ctypes.data, BLOCKS * BLOCK_NBYTES
        regions = tuple(Region(f"{n}", base + n * span, BLOCK_NBYTES, BLOCK_NBYTES, BLOCKS) for n in range(REGIONS))
        layout = Layout(0, 1, (Group("0" * 64, "bfloat16", "NHD", 16, (0, 8), regions),))
        self.workers = {
            name: Worker(layout, "LOADKEY00000", Secret("load-secret"), NixlConfig(transports="tcp", checksum=checksum))
            for name, checksum in (("direct, digests", True), ("direct", False))
        }

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def wait_for(worker: Worker, kind: type[Event]) -> None:
    while not (events := worker.poll()):
        time.sleep(0.0005)
    assert isinstance(events[0], kind), events


def decode(pipe: Connection, addresses: dict[str, tuple[str, int]], port: int) -> None:
    """The process that receives."""
    memory = Memory()
    peer = socket.create_connection(("127.0.0.1", port))
    ids = list(range(BLOCKS))
    random.Random(1).shuffle(ids)
    pipe.send("ready")
    while (row := pipe.recv()) is not None:
        began = time.process_time()
        if row == "socket":
            for region in memory.bytes:
                view, got = memoryview(region).cast("B"), 0
                while got < len(view):
                    got += peer.recv_into(view[got:])
        else:
            worker = memory.workers[row]
            worker.want("r", addresses[row], [BlockRun(0, tuple(ids))])
            wait_for(worker, Arrived)
        pipe.send(time.process_time() - began)
    memory.close()


def measure(memory: Memory, pipe: Connection, peer: socket.socket, row: str) -> tuple[float, float]:
    """Seconds, and CPU seconds of both processes, of one transfer."""
    began, cpu = time.perf_counter(), time.process_time()
    pipe.send(row)
    if row == "socket":
        for region in memory.bytes:
            peer.sendall(memoryview(region).cast("B"))
    else:
        worker = memory.workers[row]
        worker.offer("r", [BlockRun(0, tuple(range(BLOCKS)))])
        wait_for(worker, Sent)
    theirs: float = pipe.recv()
    return time.perf_counter() - began, time.process_time() - cpu + theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfers", type=int, default=8, help="of each row (%(default)s)")
    options = parser.parse_args()
    memory = Memory()
    addresses = {name: worker.address for name, worker in memory.workers.items()}
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = context.Process(target=decode, args=(theirs, addresses, server.getsockname()[1]))
        child.start()
        peer, _ = server.accept()
    assert pipe.recv() == "ready"

    def run(row: str) -> tuple[float, float]:
        return measure(memory, pipe, peer, row)

    found: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    for row in ROWS:
        run(row)
    for _ in range(options.transfers):
        for row in ROWS:
            found[row].append(run(row))
    pipe.send(None)
    child.join()
    memory.close()
    print(f"{'':18}{'MB/s, median':>14}{'best':>8}{'CPU s/GB':>10}")
    for row, each in found.items():
        seconds = sorted(second for second, _ in each)
        cpu = sorted(cpu for _, cpu in each)[len(each) // 2]
        median, best = NBYTES / seconds[len(seconds) // 2] / 1e6, NBYTES / seconds[0] / 1e6
        print(f"{row:18}{median:14.0f}{best:8.0f}{cpu / NBYTES * 1e9:10.2f}")


if __name__ == "__main__":
    main()
