"""KV straight from a prefill worker into a decode worker's blocks, with NIXL. Independent of any engine."""

from engine_adapters.nixl.config import NixlConfig
from engine_adapters.nixl.events import Arrived, Event, Failed, Sent, Stats, Unsent
from engine_adapters.nixl.layout import HOST, BlockRun, Group, Layout, Region
from engine_adapters.nixl.worker import Worker

__all__ = [
    "HOST",
    "Arrived",
    "BlockRun",
    "Event",
    "Failed",
    "Group",
    "Layout",
    "NixlConfig",
    "Region",
    "Sent",
    "Stats",
    "Unsent",
    "Worker",
]
