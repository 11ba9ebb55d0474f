"""GET and PUT of chunks over HTTP against the limit of the machine: a raw TCP stream of the same sizes and connections.

    python loadtest/throughput.py --quick

Starts a gateway (host tier, S3-authenticated, `ack: memory`) and a raw TCP peer in processes of their own, and measures
them in alternation. The client is the same for both: threads that send from and receive into one buffer each. Prints
GB/s, the ratio to raw TCP in the same round, and the CPU seconds a GB of the gateway.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from restart import ACCESS_KEY, SECRET_KEY, free_port, os_times, ready

from kvgate.client.sync import Client

SIZES = {"256K": 256 << 10, "4M": 4 << 20, "32M": 32 << 20}
RAW_PEER = """
import socket, sys, threading
def serve(sock):
    buffer = memoryview(bytearray(32 << 20))
    with sock:
        while head := sock.recv(16, socket.MSG_WAITALL):
            verb, nbytes = head[:4], int(head[4:])
            if verb == b"GET ":
                sock.sendall(buffer[:nbytes])
            else:
                done = 0
                while done < nbytes:
                    done += sock.recv_into(buffer[done:nbytes])
                sock.sendall(b"k")
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(sock,), daemon=True).start()
"""


def run_threads(connections: int, operations: int, work: Callable[[int, int], None]) -> float:
    """Seconds until `connections` threads have each done their share of the operations."""
    barrier = threading.Barrier(connections + 1)

    def loop(number: int) -> None:
        barrier.wait()
        for operation in range(operations // connections):
            work(number, operation)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


class Raw:
    """Exchanges with the raw peer."""

    def __init__(self, port: int, connections: int, nbytes: int) -> None:
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        for sock in self._sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffers = [memoryview(bytearray(nbytes)) for _ in range(connections)]
        self._nbytes = nbytes

    def get(self, number: int, _: int) -> None:
        sock, buffer = self._sockets[number], self._buffers[number]
        sock.sendall(b"GET %012d" % self._nbytes)
        done = 0
        while done < self._nbytes:
            done += sock.recv_into(buffer[done:])

    def put(self, number: int, _: int) -> None:
        sock = self._sockets[number]
        sock.sendall(b"PUT %012d" % self._nbytes)
        sock.sendall(self._buffers[number])
        sock.recv(1)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


class Gateway:
    """Exchanges with the gateway."""

    def __init__(self, port: int, connections: int, nbytes: int) -> None:
        self._clients = [
            Client(f"http://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY, deadline_s=60) for _ in range(connections)
        ]
        self._buffers = [memoryview(bytearray(os.urandom(nbytes))) for _ in range(connections)]
        for number in range(connections):
            self.put(number, 0)

    def get(self, number: int, _: int) -> None:
        self._clients[number].get("bucket", f"object-{number}", into=self._buffers[number])

    def put(self, number: int, _: int) -> None:
        self._clients[number].put("bucket", f"object-{number}", [self._buffers[number]])

    def close(self) -> None:
        for client in self._clients:
            client.close()


def measure(
    ports: tuple[int, int], pid: int, name: str, connections: int, rounds: int, budget: int
) -> list[dict[str, object]]:
    """Rows for GET and PUT of one size: medians over the rounds, raw and gateway in turn."""
    nbytes = SIZES[name]
    operations = max(connections, min(400, budget // nbytes) // connections * connections)
    raw, gateway = Raw(ports[0], connections, nbytes), Gateway(ports[1], connections, nbytes)
    rows = []
    for verb in ("get", "put"):
        ratios, speeds, costs = [], [], []
        for _ in range(rounds):
            gigabytes = operations * nbytes / 1e9
            raw_s = run_threads(connections, operations, getattr(raw, verb))
            cpu_s = sum(os_times(pid))
            gateway_s = run_threads(connections, operations, getattr(gateway, verb))
            costs.append((sum(os_times(pid)) - cpu_s) / gigabytes)
            speeds.append(gigabytes / gateway_s)
            ratios.append(raw_s / gateway_s)
        rows.append(
            {
                "operation": f"{verb.upper()} {name}",
                "connections": connections,
                "GB/s": round(statistics.median(speeds), 2),
                "of raw TCP": round(statistics.median(ratios), 2),
                "server CPU s/GB": round(statistics.median(costs), 2),
            }
        )
    raw.close()
    gateway.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rounds, budget = (3, 512 << 20) if options.quick else (5, 2 << 30)
    raw_port, port, admin_port = free_port(), free_port(), free_port()
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    with tempfile.TemporaryDirectory(prefix="kvgate-throughput-") as folder:
        path = Path(folder) / "kvgate.yaml"
        key = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
        path.write_text(
            yaml.safe_dump(
                {
                    "listen": {"port": port, "admin_port": admin_port},
                    "tenants": {"load": {"access_keys": [key], "buckets": ["bucket"]}},
                    "tiers": {"host": {"capacity": "2GiB"}},
                }
            )
        )
        raw = subprocess.Popen([sys.executable, "-c", RAW_PEER, str(raw_port)])
        gateway = subprocess.Popen(
            [sys.executable, "-m", "kvgate.cli", "serve", "--config", str(path), "--log-level", "warning"]
        )
        try:
            while not ready(admin_port):
                time.sleep(0.02)
            print(f"{os.cpu_count()} cores, TCP congestion control {congestion}, Python {sys.version.split()[0]}")
            print(f"{'operation':<10} {'connections':>11} {'GB/s':>6} {'of raw TCP':>11} {'server CPU s/GB':>16}")
            rows = []
            for name in SIZES:
                for connections in (1, 4):
                    for row in measure((raw_port, port), gateway.pid, name, connections, rounds, budget):
                        print(
                            f"{row['operation']:<10} {row['connections']:>11} {row['GB/s']:>6} {row['of raw TCP']:>11} "
                            f"{row['server CPU s/GB']:>16}"
                        )
                        rows.append(row)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
        finally:
            for process in (raw, gateway):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
