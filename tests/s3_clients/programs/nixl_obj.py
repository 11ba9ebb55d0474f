"""NIXL's OBJ plugin, which moves memory to objects and back.

Transfers of at least crtMinLimit bytes, which is the first argument, go by its engine on AWS's Common Runtime; without
the argument all go by its standard engine.
"""

import itertools
import sys
import time
from importlib.metadata import version

import numpy
from answering import ACCESS_KEY, BUCKET, CA_BUNDLE, ENDPOINT, REGION, SCHEME, SECRET_KEY, answer
from nixl._api import nixl_agent, nixl_agent_config

agent = nixl_agent("client", nixl_agent_config(backends=[]))
agent.create_backend(
    "OBJ",
    {
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "bucket": BUCKET,
        "endpoint_override": ENDPOINT,
        "scheme": SCHEME,
        "region": REGION,
    }
    | ({"ca_bundle": CA_BUNDLE} if CA_BUNDLE else {})
    | ({"crtMinLimit": sys.argv[1]} if len(sys.argv) > 1 else {}),
)
device_ids = itertools.count(1)


def transfer(operation: str, key: str, memory: numpy.ndarray, offset: int = 0) -> None:
    device = next(device_ids)
    local = agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM", ["OBJ"])
    remote = agent.register_memory([(offset, memory.nbytes, device, key)], "OBJ", ["OBJ"])
    try:
        handle = agent.initialize_xfer(operation, local.trim(), remote.trim(), "client", backends=["OBJ"])
        try:
            state = agent.transfer(handle)
            while state == "PROC":
                time.sleep(0.001)
                state = agent.check_xfer_state(handle)
        finally:
            agent.release_xfer_handle(handle)
    finally:
        agent.deregister_memory(remote, ["OBJ"])
        agent.deregister_memory(local, ["OBJ"])
    assert state == "DONE", state  # errors are raised


def put(key: str, path: str) -> None:
    transfer("WRITE", key, numpy.fromfile(path, dtype=numpy.uint8))


def get_range(key: str, start: int, stop: int, path: str) -> None:
    memory = numpy.zeros(stop - start, dtype=numpy.uint8)
    transfer("READ", key, memory, start)
    memory.tofile(path)


def upload(key: str, path: str) -> None:
    put(key, path)


def exists(key: str) -> bool:
    (found,) = agent.query_memory([(0, 0, 0, key)], "OBJ", "OBJ")
    return found is not None


answer(f"nixl {version('nixl')}", put, get_range, exists, upload)
