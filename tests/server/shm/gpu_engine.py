"""An engine on the gateway's GPU, to be killed: copies chunks from there until something stops it, and tells.

    python -m tests.server.shm.gpu_engine SOCKET ACCESS_KEY SECRET_KEY URL read|hold SEED

Prints `on-gpu` for a copy that counts and is right, `void` for one that does not count, and `WRONG` if ever one that
counts has other bytes than the chunk of that hash.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import time
from pathlib import Path

from kvgate.auth.sigv4 import Credential
from kvgate.client.local import Attachment, DeviceGrant, Gpu
from kvgate.client.local.gpu import Placed
from kvgate.client.sync import Client
from kvgate.http.deadline import Deadline
from tests.client.chunks import SPACE, chunks
from tests.kernels.file_device import FileDevice
from tests.server.shm.engine import BUCKET, say
from tests.server.shm.gpu_tier import FOLDER

SEEDS = 12
"""Prompts that may be there, as `tests.client.chunks` makes them."""


def main() -> None:
    path, access_key, secret_key, url, what, seed = sys.argv[1:]
    choose = random.Random(seed)
    with Client(url, access_key, secret_key, deadline_s=30) as client:
        salt = client.tenant().salt
    bodies = dict(pair for number in range(SEEDS) for pair in chunks(salt, 12, number))
    gpu = Gpu(FileDevice(Path(os.environ[FOLDER])))
    target = gpu.device.allocate(max(map(len, bodies.values())))
    attachment = Attachment(path, Credential(access_key, secret_key), Deadline(10))
    assert attachment.use_gpu(gpu, Deadline(10))
    say(f"attached {os.getpid()}")
    while True:
        asked = choose.sample(list(bodies), 16)
        for chunk_hash, grant in zip(
            asked, attachment.get_chunks_on_gpu(BUCKET, bytes.fromhex(SPACE.id), asked, Deadline(10)), strict=True
        ):
            if not isinstance(grant, DeviceGrant):
                continue
            if what == "hold":
                say("held")
                time.sleep(0.5)
            (blocks,) = gpu.copy([Placed(grant.extents, grant.nbytes, target)])
            holds = grant.holds
            grant.release()
            right = ctypes.string_at(target, grant.nbytes) == bodies[chunk_hash]
            if holds and blocks == grant.blocks:
                say("on-gpu" if right else "WRONG")
            elif holds:
                say("WRONG digest of a grant that holds")
            else:
                say("void")


if __name__ == "__main__":
    main()
