"""An engine to be killed: reads or writes through shared memory until something stops it, and tells what it did.

    python -m tests.server.shm.engine SOCKET ACCESS_KEY SECRET_KEY read|write|hold KEYS NAME

A body says which key and version it is, all through, so that a reader knows a wrong byte. Prints a line whenever it
holds a grant or has completed something, and `WRONG` if ever a copy that counts has wrong bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time

from kvgate.auth.sigv4 import Credential
from kvgate.client.local import Attachment, Grant
from kvgate.errors import GatewayError, GatewayUnavailable
from kvgate.http.deadline import Deadline

BUCKET = "alpha-bucket"
SIZES = (3_000_000, 70_000, 1 << 20, 9_000_000)


def body_of(key: int, version: int) -> bytes:
    seed = b"%d:%d:" % (key, version) + hashlib.sha256(b"%d:%d" % (key, version)).digest()
    nbytes = SIZES[(key + version) % len(SIZES)]
    return (seed * (nbytes // len(seed) + 1))[:nbytes]


def is_whole(key: int, body: bytes | memoryview) -> bool:
    """Whether a body is one that was written for this key."""
    head = bytes(body[:32]).split(b":", 2)
    return len(head) == 3 and head[0] == b"%d" % key and bytes(body) == body_of(key, int(head[1]))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def read(attachment: Attachment, keys: int, choose: random.Random) -> None:
    key = choose.randrange(keys)
    found = attachment.get(BUCKET, f"key-{key}", Deadline(10), wait_s=5)
    if not isinstance(found, Grant):
        return
    buffer = memoryview(bytearray(found.nbytes))
    with found:
        try:
            found.copy_into(buffer, Deadline(30))
        except GatewayError as error:
            say(f"void {error.code or type(error).__name__}")
            return
    say("read" if is_whole(key, buffer) else f"WRONG {key}")


def write(attachment: Attachment, keys: int, choose: random.Random) -> None:
    key, version = choose.randrange(keys), choose.randrange(1_000_000)
    body = memoryview(body_of(key, version))
    try:
        with attachment.reserve(BUCKET, f"key-{key}", len(body), Deadline(10)) as reservation:
            reservation.fill([body], Deadline(10))
            reservation.commit(Deadline(10))
    except GatewayUnavailable:
        raise
    except GatewayError as error:
        say(f"refused {error.code}")
        return
    say("wrote")


def hold(attachment: Attachment) -> None:
    """Take a grant, say so, wait to be stopped and continued, and look whether the copy counts."""
    found = attachment.get(BUCKET, "key-0", Deadline(10), wait_s=5)
    assert isinstance(found, Grant)
    views = found.views
    say("held")
    time.sleep(0.5)
    taken = b"".join(views)
    if found.holds:
        say("read" if is_whole(0, taken) else "WRONG 0")
    else:
        say("void")


def main() -> None:
    path, access_key, secret_key, what, keys, seed = sys.argv[1:]
    choose = random.Random(seed)
    attachment = Attachment(path, Credential(access_key, secret_key), Deadline(10))
    say(f"attached {os.getpid()}")
    while True:
        if what == "hold":
            hold(attachment)
        else:
            (read if what == "read" else write)(attachment, int(keys), choose)


if __name__ == "__main__":
    main()
