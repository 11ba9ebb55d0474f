"""The GPU tier in a gateway's process, on a GPU whose memory is files: a plug-in, as a package would bring it."""

from __future__ import annotations

import os
from pathlib import Path

from kvgate.tiers.gpu import GpuConfig, GpuTier
from tests.kernels.file_device import FileDevice

FOLDER = "KVGATE_TEST_GPU_FOLDER"
KIND = "gpu-of-files"


class FileGpuTier(GpuTier):
    """See the module."""

    def __init__(self, config: GpuConfig) -> None:
        super().__init__(config, lambda index: FileDevice(Path(os.environ[FOLDER])))


def install(folder: Path) -> dict[str, str]:
    """The environment of a gateway that has this tier, under KIND, and its GPU's memory in a folder of `folder`."""
    site, memory = folder / "site", folder / "gpu"
    memory.mkdir()
    package = site / "kvgate_gpu_of_files-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: kvgate-gpu-of-files\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[kvgate.tiers]\n{KIND} = {__name__}:{FileGpuTier.__name__}\n")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, FOLDER: str(memory)}
