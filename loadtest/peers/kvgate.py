"""kvgate: host tier, every request signed, every body digested and every read verified."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import signed
from awscrt.checksums import crc64nvme
from driver import Exchange, pattern
from gateway import BUCKET, CREDENTIAL, Gateway

from peers.base import OBJECTS, key_of

MEMORY = "2GiB"
TRANSFER_AGES, HEAD_AGES = 32, 512
"""Requests for each object are signed at as many different seconds, so that few are sent twice in a run."""


class Kvgate:
    name = "kvgate"

    def __init__(self, folder: Path) -> None:
        self.gateway = Gateway(folder, {"host": {"capacity": MEMORY}})
        self.port = self.gateway.port

    @property
    def pid(self) -> int:
        assert self.gateway.process is not None, "kvgate was not started"
        return self.gateway.process.pid

    def start(self) -> None:
        self.gateway.start()

    def stop(self) -> None:
        self.gateway.stop()

    def get(self, nbytes: int) -> Exchange:
        return Exchange(self._signed("GET"), payload_nbytes=nbytes)

    def put(self, nbytes: int) -> Exchange:
        return Exchange(self._signed("PUT", body_nbytes=nbytes), body_nbytes=nbytes)

    def checked_put(self, nbytes: int) -> Exchange:
        """PUTs with a checksum of the body that the gateway must verify."""
        value = b64encode(crc64nvme(pattern(nbytes)).to_bytes(8, "big")).decode()
        heads = self._signed("PUT", {"x-amz-checksum-crc64nvme": value}, body_nbytes=nbytes)
        return Exchange(heads, body_nbytes=nbytes)

    def head(self) -> Exchange:
        return Exchange(self._signed("HEAD", ages=HEAD_AGES), reply="head")

    def token_head(self) -> Exchange:
        """HEADs under a session token. Raises RuntimeError when this gateway issues none."""
        token = self.gateway.ask("/_kv/v1/session", {})["token"]
        heads = [
            f"HEAD /{BUCKET}/{key_of(number)} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"authorization: Bearer {token}\r\n\r\n".encode()
            for number in range(OBJECTS)
        ]
        return Exchange(heads, reply="head")

    def _signed(
        self,
        method: str,
        headers: dict[str, str] | None = None,
        *,
        body_nbytes: int | None = None,
        ages: int = TRANSFER_AGES,
    ) -> list[bytes]:
        return [
            signed.request(CREDENTIAL, self.port, method, path, headers, body_nbytes=body_nbytes, age_s=age_s)
            for age_s in range(ages)
            for path in [f"/{BUCKET}/{key_of(number)}" for number in range(OBJECTS)]
        ]
