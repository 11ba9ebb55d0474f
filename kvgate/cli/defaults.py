"""The gateway that `kvgate serve` runs without a configuration file: one tenant, one bucket, sized for this machine."""

from __future__ import annotations

import os
from pathlib import Path

from kvgate.auth.tenants import AccessKeyConfig, TenantConfig
from kvgate.cli.keys import Keys
from kvgate.cli.machine.disk import free_disk, total_disk
from kvgate.cli.machine.memory import free_memory
from kvgate.config import GiB, MiB, Size
from kvgate.server.config import GatewayConfig

TENANT, BUCKET = "default", "chunks"
HOST_LEAST, HOST_MOST = 64 * MiB, 32 * GiB
DISK_LEAST, DISK_MOST = 256 * MiB, 256 * GiB


def data_folder() -> Path:
    """Where a gateway of this user keeps its data: `$XDG_DATA_HOME/kvgate`, by default `~/.local/share/kvgate`.

    As the XDG specification asks, a relative XDG_DATA_HOME is ignored.
    """
    home = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".local" / "share") / "kvgate"


def default_config(keys: Keys, folder: Path) -> GatewayConfig:
    """One tenant with `keys` and one bucket, in host memory and on the disk under `folder`."""
    credential = AccessKeyConfig(keys.access_key, keys.secret_key)
    disk = folder / "disk"
    return GatewayConfig(
        tenants={TENANT: TenantConfig((credential,), buckets=(BUCKET,), salt=keys.salt)},
        tiers={"host": {"capacity": host_capacity()}, "disk": {"path": str(disk), "capacity": disk_capacity(disk)}},
    )


def host_capacity() -> Size:
    """A quarter of the free memory, from HOST_LEAST to HOST_MOST, in whole MiB."""
    return _between(HOST_LEAST, free_memory() // 4, HOST_MOST)


def disk_capacity(folder: Path) -> Size:
    """A tenth of the disk under `folder` and no more than half of what is free, from DISK_LEAST to DISK_MOST.

    A share of the whole disk rather than of its free part, so that the next start, with the tier full, finds the same.
    """
    return _between(DISK_LEAST, min(total_disk(folder) // 10, free_disk(folder) // 2), DISK_MOST)


def _between(least: int, nbytes: int, most: int) -> Size:
    return Size(max(least, min(nbytes, most)) // MiB * MiB)
