"""One worker in a process of its own, with blocks of plain memory. Commands and events are lines of JSON."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

import numpy as np

from engine_adapters.nixl import BlockRun, Group, Layout, NixlConfig, Region, Worker
from kvgate.config import Secret

SPACES = ["ab" * 32, "cd" * 32]


class Peer:
    """Two groups: three regions one after the other, and two whose blocks lie in between each other's."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.blocks, self.block_nbytes = options.get("blocks", 64), options.get("block_nbytes", 4096)
        self.memory = [np.zeros((3, self.blocks, self.block_nbytes), np.uint8),
                       np.zeros((self.blocks, 2, self.block_nbytes // 2), np.uint8)]  # fmt: skip
        plain, mixed = (array.ctypes.data for array in self.memory)
        nbytes, half = self.block_nbytes, self.block_nbytes // 2
        layers = [Region(f"layer.{n}", plain + n * self.blocks * nbytes, nbytes, nbytes, self.blocks) for n in range(3)]
        parts = [Region(f"window.{n}", mixed + n * half, half, 2 * half, self.blocks) for n in range(2)]
        if options.get("layers_turned"):
            layers.reverse()
        space = options.get("space", SPACES[0])
        groups = (
            Group(space, options.get("dtype", "bfloat16"), "NHD", 16, (0, options.get("heads", 4)), tuple(layers)),
            Group(SPACES[1], "bfloat16", "NHD", 16, (0, 4), tuple(parts)),
        )
        layout = Layout(options.get("rank", 0), options.get("ranks", 1), groups)
        config = NixlConfig(transports="tcp", **options.get("config", {}))
        self.worker = Worker(layout, "AKIDTEST", Secret(options.get("secret", "a tenant's secret")), config)

    def bytes_of(self, group: int, block: int) -> Any:
        return self.memory[0][:, block] if group == 0 else self.memory[1][block]

    def fill(self, seed: int, blocks: list[list[int]]) -> None:
        """Bytes that follow from the seed, the group and the place of the block in its run."""
        for group, ids in enumerate(blocks):
            for place, block in enumerate(ids):
                view = self.bytes_of(group, block)
                data = random.Random(f"{seed}/{group}/{place}").randbytes(view.size)
                view[...] = np.frombuffer(data, np.uint8).reshape(view.shape)

    def matches(self, seed: int, blocks: list[list[int]], firsts: list[int]) -> bool:
        """Whether the blocks hold what `fill` writes, each run from its own first place on."""
        for group, (ids, first) in enumerate(zip(blocks, firsts, strict=True)):
            for place, block in enumerate(ids, first):
                view = self.bytes_of(group, block)
                if view.tobytes() != random.Random(f"{seed}/{group}/{place}").randbytes(view.size):
                    return False
        return True

    def obey(self, command: dict[str, Any]) -> Any:
        runs = [BlockRun(first, tuple(ids)) for first, ids in command.get("runs", [])]
        match command["do"]:
            case "offer":
                self.worker.offer(command["request"], runs, command.get("deadline_s"))
            case "want":
                self.worker.want(command["request"], tuple(command["address"]), runs, command.get("deadline_s"))
            case "cancel":
                self.worker.cancel(command["request"])
            case "withdraw":
                self.worker.withdraw(command["request"])
            case "fill":
                self.fill(command["seed"], command["blocks"])
            case "matches":
                return self.matches(command["seed"], command["blocks"], command["firsts"])
            case "digest":
                return [int(array.astype(np.uint64).sum()) for array in self.memory]
            case "stats":
                return {name: getattr(self.worker.stats, name) for name in self.worker.stats.__slots__}
            case "close":
                self.worker.close()
        return None


def main() -> None:
    peer = Peer(json.loads(sys.argv[1]))
    lock = threading.Lock()

    def tell(**line: Any) -> None:
        with lock:
            print(json.dumps(line), flush=True)

    def watch() -> None:
        while True:
            for event in peer.worker.poll():
                reason = getattr(event, "reason", "")
                tell(event=type(event).__name__, request=event.request_id, reason=reason)
            time.sleep(0.001)

    threading.Thread(target=watch, daemon=True).start()
    tell(answer=0, value=list(peer.worker.address))
    for number, line in enumerate(sys.stdin, 1):
        try:
            tell(answer=number, value=peer.obey(json.loads(line)))
        except Exception as error:
            tell(answer=number, error=f"{type(error).__name__}: {error}")
    peer.worker.close()


if __name__ == "__main__":
    main()
