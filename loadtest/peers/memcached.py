"""memcached, with its default of four threads and items of up to 64 MiB."""

from __future__ import annotations

from driver import Exchange

from peers.base import OBJECTS, Program, key_of, program


class Memcached(Program):
    name = "memcached"

    def command(self) -> list[str]:
        path = program("memcached", "Debian and Ubuntu: apt-get install memcached")
        # -u: it refuses to be root's without being told
        return [path, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-m", "2048", "-I", "64m", "-u", "root"]

    def get(self, nbytes: int) -> Exchange:
        heads = [b"get %s\r\n" % key_of(number).encode() for number in range(OBJECTS)]
        trailing = len("\r\nEND\r\n")
        reply = len("VALUE  0 \r\n") + len(key_of(0)) + len(str(nbytes)) + nbytes + trailing
        return Exchange(heads, reply=reply, expect=b"VALUE ", payload_nbytes=nbytes, trailing_nbytes=trailing)

    def put(self, nbytes: int) -> Exchange:
        heads = [b"set %s 0 0 %d\r\n" % (key_of(number).encode(), nbytes) for number in range(OBJECTS)]
        return Exchange(heads, body_nbytes=nbytes, tail=b"\r\n", reply=8, expect=b"STORED\r\n")

    def head(self) -> Exchange:
        heads = [b"mg %s\r\n" % key_of(number).encode() for number in range(OBJECTS)]
        return Exchange(heads, reply=4, expect=b"HD\r\n")
