"""Bare TCP (raw.c): what loopback and memory allow."""

from __future__ import annotations

from driver import Exchange, compile_c

from peers.base import OBJECTS, Program

LARGEST_NBYTES = 32 << 20


class Raw(Program):
    name = "raw"

    def command(self) -> list[str]:
        program = compile_c("raw", self.folder)
        return [str(program), str(self.port), str(OBJECTS), str(LARGEST_NBYTES)]

    def get(self, nbytes: int) -> Exchange:
        return Exchange(_heads("G", nbytes), reply=nbytes, expect=b"", payload_nbytes=nbytes)

    def put(self, nbytes: int) -> Exchange:
        return Exchange(_heads("P", nbytes), body_nbytes=nbytes, reply=1, expect=b"K")

    def head(self) -> Exchange:
        return self.put(0)


def _heads(verb: str, nbytes: int) -> list[bytes]:
    return [b"%s%03d%012d" % (verb.encode(), number, nbytes) for number in range(OBJECTS)]
