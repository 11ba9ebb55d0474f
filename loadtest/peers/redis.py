"""Redis, as it is configured by default but for persistence."""

from __future__ import annotations

from driver import Exchange

from peers.base import OBJECTS, Program, key_of, program


class Redis(Program):
    name = "redis"

    def command(self) -> list[str]:
        return [program("redis-server", "Debian and Ubuntu: apt-get install redis-server"), *self.options()]

    def options(self) -> list[str]:
        return ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]

    def get(self, nbytes: int) -> Exchange:
        expect = b"$%d\r\n" % nbytes
        reply = len(expect) + nbytes + 2
        return Exchange(_commands("GET"), reply=reply, expect=expect, payload_nbytes=nbytes, trailing_nbytes=2)

    def put(self, nbytes: int) -> Exchange:
        heads = [b"*3\r\n$3\r\nSET\r\n%s$%d\r\n" % (_text(key_of(n)), nbytes) for n in range(OBJECTS)]
        return Exchange(heads, body_nbytes=nbytes, tail=b"\r\n", reply=5, expect=b"+OK\r\n")

    def head(self) -> Exchange:
        return Exchange(_commands("EXISTS"), reply=4, expect=b":1\r\n")


def _commands(verb: str) -> list[bytes]:
    return [b"*2\r\n%s%s" % (_text(verb), _text(key_of(number))) for number in range(OBJECTS)]


def _text(text: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text.encode())
