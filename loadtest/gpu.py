"""What a GPU makes of kvgate's kernels: their bits, their accesses, and their speed beside plain copies.

    python loadtest/gpu.py            all of it, in a few minutes; writes the table of routes of this machine
    python loadtest/gpu.py --times    only the speed

Without a GPU it says so, runs nothing, and fails. `make gpu` runs it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvgate.chunk.layout import Layout
from kvgate.kernels import quantised_copy, routes
from kvgate.kernels.block_digests import BlockDigests, Lying
from kvgate.kernels.cupy_device import CupyDevice
from kvgate.kernels.device import Copy, NoDevice
from kvgate.kernels.paged_copy import PagedCopies, Placed, Selection, plan
from kvgate.kernels.pages import Pages, Table
from kvgate.kernels.pieces import Extent
from kvgate.kernels.quantised_copy import Encoded, Kind, QuantisedCopies
from kvgate.kernels.routes import Routes
from kvgate.kernels.transfer import Transfers

ROOT = Path(__file__).resolve().parents[1]
CHECKED = [
    "test_block_digests.py",
    "test_paged_copy.py",
    "test_quantised_copy.py",
    "test_rotated_scatter.py",
    "test_each_kernel.py",
]

ORDERS = {
    "LBNHC": "LBTHP",
    "LBHNC": "LBHTP",
    "BLHNC": "BLHTP",
    "BLNHC": "BLTHP",
    "NHD": "LPBTH",
    "HND": "LPBHT",
}
"""vLLM's layouts of today and of before: the axes as they lie, the outermost first; a row of head_dim follows."""


@dataclass(frozen=True)
class Size:
    """A model's KV and how much of it is moved; the default is that of an 8B model, in chunks of 32 MiB."""

    layers: int = 32
    heads: int = 8
    head_dim: int = 128
    block_tokens: int = 16
    chunk_tokens: int = 256
    chunks: int = 4
    repeats: int = 20

    @property
    def layout(self) -> Layout:
        return Layout(self.layers, 2, self.heads, self.chunk_tokens, self.head_dim, "BF16")

    @property
    def blocks(self) -> int:
        return self.chunks * self.chunk_tokens // self.block_tokens


def paged(order: str, size: Size, base: int, parts: int = 2) -> Pages:
    """Pages of `size` from `base` on, whose axes lie in `order`."""
    row = size.head_dim * 2
    counts = {"L": size.layers, "P": parts, "B": size.blocks, "H": size.heads, "T": size.block_tokens}
    strides, stride = {}, row
    for axis in reversed(order):
        strides[axis] = stride
        stride *= counts[axis]
    places = [(layer, part) for layer in range(size.layers) for part in range(parts)]
    bases = tuple(base + layer * strides["L"] + part * strides["P"] for layer, part in places)
    return Pages(
        bases, parts, size.heads, size.blocks, size.block_tokens, row, strides["B"], strides["H"], strides["T"]
    )


def tables(size: Size) -> list[Table]:
    """Blocks that do not follow one another: a stride that meets each of them once."""
    ids = [number * 7919 % size.blocks for number in range(size.blocks)]
    if len(set(ids)) != size.blocks:
        ids = list(range(size.blocks))[::-1]
    each = size.chunk_tokens // size.block_tokens
    return [Table(ids[first : first + each]) for first in range(0, size.blocks, each)]


def seconds(device: Any, stream: int, repeats: int, run: Callable[[], object]) -> float:
    """How long one of `repeats` takes that follow each other on the stream, after one that compiles the kernel."""
    run()
    device.record(stream).wait()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    device.record(stream).wait()
    return (time.perf_counter() - began) / repeats


def measure(device: Any, size: Size, say: Callable[[str], None] = print) -> Routes:
    """Time every way beside a plain copy of the same bytes, and say the ratios; which way is the faster one by size."""
    total = size.chunks * size.layout.nbytes
    stream = device.open_stream()
    pool, staged, host = device.allocate(total), device.allocate(total), device.allocate_host(total)

    def plain(target: int, source: int) -> float:
        return seconds(device, stream, size.repeats, lambda: device.copy([Copy(target, source, total)], stream))

    def rate(took: float, nbytes: int = total) -> str:
        return f"{nbytes / took / 1e9:8.1f} GB/s"

    here, up, down = plain(staged, pool), plain(pool, host), plain(host, pool)
    say(f"{total >> 20} MiB; a plain copy on the GPU {rate(here)}, to it {rate(up)}, from it {rate(down)}")
    copies, layout = PagedCopies(device), size.layout
    for name, order in ORDERS.items():
        pages = paged(order, size, pool)
        for where, base, limits in (("GPU", staged, (here, here)), ("host", host, (down, up))):
            chunks = [
                Placed([Extent(base + number * layout.nbytes, layout.nbytes)], table)
                for number, table in enumerate(tables(size))
            ]
            launch = plan(layout, pages, chunks, Selection.all_of(layout))
            for verb, run, limit in (
                ("gather", copies.gather, limits[0]),
                ("scatter", copies.scatter, limits[1]),
            ):
                took = seconds(device, stream, size.repeats, lambda run=run, launch=launch: run(launch, stream))  # type: ignore[misc]
                say(f"{verb:8} {name:6} {where:4} {rate(took)}  {limit / took:5.2f} of the plain copy")
    copies.close()
    digests = BlockDigests(device)
    lying = [Lying([Extent(staged + at, layout.nbytes)], layout.nbytes) for at in range(0, total, layout.nbytes)]
    took = seconds(device, stream, size.repeats, lambda: digests.take(lying, stream))
    say(f"digests of each MiB    {rate(took)}  {here / took:5.2f} of the plain copy")
    digests.close()
    measure_codes(device, size, pool, staged, stream, here, say)
    found = measure_routes(device, size, pool, host, (up, down), say)
    device.close_stream(stream)
    device.free(pool)
    device.free(staged)
    device.free_host(host)
    return found


def measure_codes(
    device: Any, size: Size, pool: int, staged: int, stream: int, here: float, say: Callable[[str], None]
) -> None:
    """Time values on their way into codes and back, over the bytes that they have in the pages."""
    copies, layout = QuantisedCopies(device), size.layout
    pages = paged("LBTHP", size, pool, parts=1)
    rows = size.layers * size.heads * size.chunk_tokens
    room = layout.nbytes // 2
    for kind in Kind:
        chunks = [
            Encoded(at, at + rows * size.head_dim, at + rows * size.head_dim + room // 4, table)
            for at, table in zip(range(staged, staged + size.chunks * room, room), tables(size), strict=True)
        ]
        launch = quantised_copy.plan(kind, "BF16", size.chunk_tokens, pages, chunks)
        for verb, run in (("gather", copies.gather), ("scatter", copies.scatter)):
            took = seconds(device, stream, size.repeats, lambda run=run, launch=launch: run(launch, stream).good())  # type: ignore[misc]
            nbytes = size.chunks * room
            say(
                f"{verb:8} {kind.value:14} {nbytes / took / 1e9:8.1f} GB/s of BF16"
                f"  {here / 2 / took:5.2f} of the plain copy of as many"
            )
    copies.close()


def measure_routes(
    device: Any, size: Size, pool: int, host: int, plain: tuple[float, float], say: Callable[[str], None]
) -> Routes:
    """Time both ways between the host and the pages for more and more layers; up to how much the direct one wins."""
    layout, limits = size.layout, {"load": 0, "store": 0}
    pages = paged(ORDERS["LBNHC"], size, pool)
    chunks = [Placed([Extent(host, layout.nbytes)], tables(size)[0])]
    ways = {"direct": Routes(1 << 62, 1 << 62), "staged": Routes(0, 0)}
    still = dict.fromkeys(limits, True)
    layers = 1
    while layers <= size.layers:
        selection = Selection(range(layers), range(size.heads))
        nbytes = layout.nbytes // size.layers * layers
        took: dict[tuple[str, str], float] = {}
        for way, chosen in ways.items():
            transfers = Transfers(device, chosen, 2 * layout.nbytes)
            for verb, run in (("load", transfers.load), ("store", transfers.store)):

                def once(run: Any = run) -> None:
                    run(layout, pages.of_layers(range(layers)), chunks, selection)[-1].event.wait()  # noqa: B023

                once()
                began = time.perf_counter()
                for _ in range(size.repeats):
                    once()
                took[verb, way] = (time.perf_counter() - began) / size.repeats
            transfers.close()
        for verb, limit in zip(limits, plain, strict=True):
            direct, staged = took[verb, "direct"], took[verb, "staged"]
            still[verb] = still[verb] and direct <= staged
            if still[verb]:
                limits[verb] = nbytes
            share = limit * nbytes / (size.chunks * layout.nbytes) / min(direct, staged)
            say(
                f"{verb:8} {nbytes >> 10:8} KiB  direct {direct * 1e6:8.0f} us  staged {staged * 1e6:8.0f} us"
                f"  the faster {share:5.2f} of the plain copy"
            )
        layers *= 2
    return Routes(**limits)


def check(sanitizer: str | None) -> None:
    """The tests of the kernels and of the tier on the GPU, then one case of each kernel under compute-sanitizer."""
    environment = {**os.environ, "KVGATE_TEST_DEVICE": "gpu"}
    tests = [f"tests/kernels/{name}" for name in CHECKED] + ["tests/tiers/test_gpu.py", "tests/server/shm/test_gpu.py"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*pytest, *tests], cwd=ROOT, env=environment, check=True)
    if sanitizer is None:
        print("compute-sanitizer is not installed, so it did NOT look at the kernels", file=sys.stderr)
        return
    one = [*pytest, "tests/kernels/test_each_kernel.py"]
    subprocess.run([sanitizer, "--error-exitcode", "9", *one], cwd=ROOT, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", action="store_true", help="only the speed")
    options = parser.parse_args()
    try:
        device = CupyDevice()
    except NoDevice as error:
        print(f"Nothing was run: {error}", file=sys.stderr)
        return 1
    print(f"{device.name}, sm_{device.architecture}, {device.multiprocessors} multiprocessors")
    if not options.times:
        check(shutil.which("compute-sanitizer"))
    found = measure(device, Size())
    day = datetime.datetime.now(datetime.UTC).date()
    kept = Routes(found.load, found.store, f"{device.name}, {day}")
    routes.keep(device.architecture, kept)
    print(f"{routes.path(device.architecture)}: directly up to {kept.load} bytes in, {kept.store} bytes out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
