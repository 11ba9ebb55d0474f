"""The load client, `client.c`: one program that drives every server, so that it costs each of them the same."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXCHANGE_S = 20.0
"""What one run may take beyond its seconds: a server that stalls must not stall the suite."""


class Stalled(RuntimeError):
    """A run did not end, though nothing broke: a lost segment's timer on a busy machine, or a server that hangs."""


@dataclass(frozen=True)
class Exchange:
    """Requests that are alike, made before, and how to know their replies.

    heads:           what is sent before the body, one a request
    body_nbytes:     of the client's pattern, sent behind each head
    tail:            sent behind the body; it has no NUL
    reply:           `http`, `head`, or the number of bytes of every reply
    expect:          what every reply begins with
    payload_nbytes:  of the client's pattern, expected in every reply
    trailing_nbytes: of a reply behind its payload
    """

    heads: Sequence[bytes] = field(repr=False)
    body_nbytes: int = 0
    tail: bytes = b""
    reply: str | int = "http"
    expect: bytes = b"HTTP/1.1 2"
    payload_nbytes: int = 0
    trailing_nbytes: int = 0

    @property
    def nbytes(self) -> int:
        """The bytes of interest that one exchange moves."""
        return self.body_nbytes or self.payload_nbytes


@dataclass(frozen=True)
class Outcome:
    """What the client saw.

    exchanges: timed ones; `untimed` more warmed the connections up
    wall_s:    from the first timed byte to the end of the last exchange
    cpu_s:     of the client, in that time
    """

    exchanges: int
    untimed: int
    received_nbytes: int
    wall_s: float
    cpu_s: float
    p50_us: float
    p99_us: float


class Driver:
    """Compiles the client once and runs it."""

    def __init__(self, folder: Path) -> None:
        """Raises RuntimeError when there is no C compiler, or it fails."""
        self._folder = folder
        self._client = compile_c("client", folder)

    def run(self, port: int, exchange: Exchange, connections: int, seconds: float, threads: int = 0) -> Outcome:
        """Exchange for `seconds` on `connections`. Raises RuntimeError at the first reply that is not as expected.

        Raises Stalled, which is one too, when a reply does not come at all.

        threads: as many as connections by default; one for all of them is the cheapest for exchanges of a few KiB
        """
        options = ["--seconds", str(seconds), "--threads", str(threads)]
        return self._run(port, exchange, connections, options, seconds)

    def once(self, port: int, exchange: Exchange, connections: int) -> Outcome:
        """Send each request once; after a stall, all of them once more. Raises RuntimeError likewise."""
        try:
            return self._run(port, exchange, connections, ["--once", "1"], 0)
        except Stalled:
            return self._run(port, exchange, connections, ["--once", "1"], 0)

    def _run(self, port: int, exchange: Exchange, connections: int, options: list[str], seconds: float) -> Outcome:
        plan = self._folder / "plan"
        plan.write_bytes(b"".join([struct.pack("=I", len(head)) + head for head in exchange.heads]))
        command = [str(self._client), "--port", str(port), "--connections", str(connections), *options]
        command += ["--body", str(exchange.body_nbytes), "--tail", exchange.tail.decode("latin-1")]
        command += ["--reply", str(exchange.reply), "--expect", exchange.expect.decode("latin-1")]
        command += ["--payload", str(exchange.payload_nbytes), "--trailing", str(exchange.trailing_nbytes), str(plan)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + EXCHANGE_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Stalled(f"the replies stopped for up to {EXCHANGE_S:.0f} s") from error
        if done.returncode:
            raise RuntimeError(" ".join(done.stderr.split())[:300] or f"the client ended with {done.returncode}")
        return Outcome(**json.loads(done.stdout))


def compile_c(name: str, folder: Path) -> Path:
    """The program of loadtest/NAME.c, in `folder`. Raises RuntimeError."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("the load client needs a C compiler (Debian and Ubuntu: apt-get install gcc libc6-dev)")
    program = folder / name
    command = [compiler, "-O2", "-std=gnu11", "-pthread", "-o", str(program), str(HERE / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}.c cannot be compiled: {done.stderr.strip()[:500]}")
    return program


def pattern(nbytes: int) -> bytes:
    """The first bytes of the client's pattern, which every body is: splitmix64 from seed 1."""
    mask, words = 2**64 - 1, []
    state = 1
    for _ in range(-(-nbytes // 8)):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        words.append(z ^ (z >> 31))
    return struct.pack(f"={len(words)}Q", *words)[:nbytes]
