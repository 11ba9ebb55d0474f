"""Where the CPU of a request goes: a gateway in this process, with thread clocks around its parts.

    python loadtest/where.py PUT --nbytes 4MiB
    python loadtest/where.py HEAD --python

The gateway is what `kvgate serve` runs, with --python without the native plane; the load client is a process of its
own. A row is what a part costs a request, without the other parts that it calls, and how often it is called. The clocks
cost a few microseconds a call, of which most is measured and left out. `rest` is what the process spent besides: the
event loop, epoll, changes of threads.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import resource
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from bed import scratch
from congestion import reno
from driver import Driver, Exchange
from peers.kvgate import Kvgate

from kvgate.auth.authenticator import Authenticator
from kvgate.cli.config import read_config
from kvgate.config import parse_size
from kvgate.s3.api import S3
from kvgate.s3.plain_put import PlainPut
from kvgate.server import plane_puts
from kvgate.server.gateway import running
from kvgate.server.http1 import connection
from kvgate.server.http1.transfer import Receive, Send
from kvgate.tiers import host

PARTS: dict[str, tuple[Any, str]] = {
    "requests on a connection": (connection.Connection, "serve"),
    "parse the head": (connection, "parse_head"),
    "S3, authenticated": (S3, "handle"),
    "authenticate": (Authenticator, "authenticate"),
    "verify the bytes": (host, "_verify"),
    "send": (Send, "step"),
    "send an answer": (connection.Connection, "_send_now"),
    "receive": (Receive, "step"),
    "uploads of the plane": (plane_puts.PlanePuts, "take"),
    "open an upload": (plane_puts, "open_plain_put"),
    "store an upload": (PlainPut, "store"),
}
"""In the order in which they may call one another."""

_PLANE_THREADS = "kvgate-plane"


@dataclass
class Clock:
    """CPU time of one part, without that of the parts that it called."""

    cpu_s: float = 0.0
    calls: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation", choices=["HEAD", "GET", "PUT"])
    parser.add_argument("--nbytes", type=parse_size, default=256 << 10, help="of each object (default 256KiB)")
    parser.add_argument("--connections", type=int, default=8, help="default 8")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long (default 2)")
    parser.add_argument("--python", action="store_true", help="without the native plane")
    options = parser.parse_args()
    with scratch() as name, reno():
        asyncio.run(measure(Path(name), options))


async def measure(folder: Path, options: argparse.Namespace) -> None:
    driver, peer = Driver(folder), Kvgate(folder)
    config = folder / "kvgate.yaml"
    config.write_text(yaml.safe_dump(peer.gateway.config | ({"store": {"published": 0}} if options.python else {})))
    async with running(read_config(config)):
        await asyncio.sleep(3)  # until memory is ready
        make: dict[str, Callable[[], Exchange]] = {
            "HEAD": peer.head,
            "GET": functools.partial(peer.get, options.nbytes),
            "PUT": functools.partial(peer.put, options.nbytes),
        }
        load = functools.partial(asyncio.to_thread, driver.run, peer.port)
        await load(peer.put(options.nbytes), options.connections, 0.5)
        exchange = make[options.operation]()
        await load(exchange, options.connections, 0.5)
        with clocks() as found:
            before, plane_before = cpu_s(), plane_cpu_s()
            outcome = await load(exchange, options.connections, options.seconds)
            total_s, plane_s = cpu_s() - before, plane_cpu_s() - plane_before
        count = outcome.exchanges + outcome.untimed
    print(f"{options.operation} of {options.nbytes} bytes, {options.connections} connections: {count} requests")
    print(f"{'':26} {'us a request':>12} {'calls':>7}")
    for name, clock in found.items():
        if clock.calls:
            print(f"{name:26} {clock.cpu_s / count * 1e6:>12.1f} {clock.calls / count:>7.2f}")
    print(f"{'threads of the plane':26} {plane_s / count * 1e6:>12.1f}")
    rest_s = total_s - plane_s - sum(clock.cpu_s for clock in found.values())
    print(f"{'rest':26} {rest_s / count * 1e6:>12.1f}")
    print(f"{'all':26} {total_s / count * 1e6:>12.1f}")


@contextmanager
def clocks() -> Iterator[dict[str, Clock]]:
    """Clocks around the parts while this lasts."""
    found = {name: Clock() for name in PARTS}
    kept = {name: getattr(owner, attribute) for name, (owner, attribute) in PARTS.items()}
    here = threading.local()  # `under_way`: what parts that were called have cost, for each that is under way
    cost_s = 0.0

    @contextmanager
    def running_part(clock: Clock) -> Iterator[None]:
        under_way = here.__dict__.setdefault("under_way", [])
        began = time.thread_time()
        under_way.append(0.0)
        try:
            yield
        finally:
            took = time.thread_time() - began - cost_s
            clock.cpu_s += took - under_way.pop()
            if under_way:
                under_way[-1] += took + cost_s

    def timed(function: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            clock.calls += 1
            with running_part(clock):
                result = function(*args, **kwargs)
            return Steps(result, clock) if asyncio.iscoroutine(result) else result

        return call

    class Steps:
        """A coroutine whose steps are timed, and not what it waits for."""

        def __init__(self, work: Coroutine[Any, Any, Any], clock: Clock) -> None:
            self._work, self._clock = work, clock

        def __await__(self) -> Generator[Any, Any, Any]:
            resume = functools.partial(self._work.send, None)
            while True:
                try:
                    with running_part(self._clock):
                        waits_for = resume()
                except StopIteration as end:
                    return end.value
                try:
                    resume = functools.partial(self._work.send, (yield waits_for))
                except BaseException as error:
                    resume = functools.partial(self._work.throw, error)

    nothing = Clock()
    empty = timed(lambda: None, nothing)
    for _ in range(10_000):
        empty()
    cost_s = nothing.cpu_s / nothing.calls
    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, timed(kept[name], found[name]))
    try:
        yield found
    finally:
        for name, (owner, attribute) in PARTS.items():
            setattr(owner, attribute, kept[name])


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def plane_cpu_s() -> float:
    """Of the native plane's threads, as Linux tells it."""
    threads = (Path("/proc/self/task") / thread for thread in os.listdir("/proc/self/task"))
    ours = [thread for thread in threads if (thread / "comm").read_text().strip() == _PLANE_THREADS]
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in ours) / 1e9


if __name__ == "__main__":
    main()
