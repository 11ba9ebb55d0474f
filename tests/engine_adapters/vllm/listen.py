"""Prints vLLM's KV events, those that tell of stored blocks, as a JSON object a line: listen.py ENDPOINT

Runs in the environment that `.ci/vllm` makes.
"""

from __future__ import annotations

import json
import sys

import msgspec
import zmq
from vllm.distributed.kv_events import BlockStored, KVEventBatch


def main(endpoint: str) -> None:
    decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.connect(endpoint)
    subscriber.setsockopt_string(zmq.SUBSCRIBE, "")
    while True:
        _, _, payload = subscriber.recv_multipart()
        for event in decoder.decode(payload).events:
            if isinstance(event, BlockStored):
                told = {
                    name: getattr(event, name)
                    for name in ("token_ids", "block_size", "medium", "locality", "ownership")
                }
                print(json.dumps(told | {"block_hashes": [str(each) for each in event.block_hashes]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
