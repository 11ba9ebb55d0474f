"""Tenants of one gateway that want more than there is; and numbers that hold whatever happens to the process."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvgate.client.sync import Client
from kvgate.errors import CorruptCopy, GatewayError
from kvgate.tiers.disk_file import read_footer
from tests.gateways import ALPHA, BETA, Credential, RunningGateway
from tests.s3.clients import s3_client

MiB = 1 << 20
BUCKET = "shared-name"
KILLS = 10
SIZES = [0, 100, 70_000, MiB, 3_000_000]
StartGateway = Callable[..., RunningGateway]


def tenants_of(gateway: RunningGateway) -> dict[str, Any]:
    with urllib.request.urlopen(f"{gateway.admin_url}/tenants", timeout=10) as answer:
        tenants: dict[str, Any] = json.loads(answer.read())["tenants"]
        return tenants


def client_of(gateway: RunningGateway, credential: Credential) -> Client:
    return Client(gateway.url, credential.access_key, credential.secret_key, deadline_s=30)


def tenants(alpha: dict[str, Any], beta: dict[str, Any]) -> dict[str, Any]:
    return {
        "alpha": {"access_keys": [ALPHA.as_config()], "buckets": [BUCKET]} | alpha,
        "beta": {"access_keys": [BETA.as_config()], "buckets": [BUCKET]} | beta,
    }


def wait_until_written(gateway: RunningGateway) -> None:
    deadline = time.monotonic() + 60
    while (waiting := gateway.metrics()['kvgate_demotion_queue_objects{tier="disk"}']) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert waiting == 0


def put(client: Client, key: str, body: bytes) -> None:
    """A PUT that tries again while memory is full, as an S3 client does."""
    for _ in range(100):
        try:
            client.put(BUCKET, key, body)
            return
        except GatewayError as error:
            if error.code != "SlowDown":
                raise
            time.sleep(0.05)
    raise AssertionError("the gateway never had room")


def flood(gateway: RunningGateway, credential: Credential, count: int) -> None:
    """Write objects of 1 MiB from several connections."""

    def write(first: int) -> None:
        with client_of(gateway, credential) as client:
            for number in range(first, count, 4):
                put(client, f"flood-{number}", bytes(MiB - 4096))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_flood_does_not_push_the_neighbour_below_its_floors(start_gateway: StartGateway, tmp_path: Path) -> None:
    floors = {"tiers": {"host": {"floor": "16MiB"}, "disk": {"floor": "48MiB"}}}
    gateway = start_gateway(
        tenants=tenants(floors, {"weight": 100}),
        tiers={
            "host": {"capacity": "40MiB", "segment": "2MiB", "prefault": 0},
            "disk": {"path": str(tmp_path / "disk"), "capacity": "96MiB"},
        },
    )
    with client_of(gateway, ALPHA) as alpha:
        for number in range(40):
            put(alpha, f"key-{number}", bytes(MiB - 4096))
        wait_until_written(gateway)
        before = tenants_of(gateway)["alpha"]["tiers"]
        assert before["disk"]["objects"] == 40
        assert before["host"]["nbytes"] > 16 * MiB
        flood(gateway, BETA, 160)
        wait_until_written(gateway)
        after = tenants_of(gateway)
        assert after["alpha"]["tiers"]["disk"] == before["disk"], "it had no more than its floor there"
        assert after["alpha"]["tiers"]["host"]["nbytes"] >= 16 * MiB
        assert after["beta"]["tiers"]["disk"]["nbytes"] >= 40 * MiB, "and the flood has the rest"
        assert after["beta"]["tiers"]["host"]["nbytes"] >= 12 * MiB
        for number in range(40):
            assert alpha.get(BUCKET, f"key-{number}").body == bytes(MiB - 4096)


def test_a_tenant_at_its_limits_takes_nothing_from_the_neighbour(start_gateway: StartGateway) -> None:
    limits = {"tiers": {"host": {"limit": "12MiB"}, "disk": {"limit": "24MiB"}}}
    gateway = start_gateway(
        tenants=tenants({}, limits), tiers={"host": {"capacity": "64MiB", "segment": "2MiB", "prefault": 0}}
    )
    with client_of(gateway, ALPHA) as alpha:
        for number in range(20):
            put(alpha, f"key-{number}", bytes(MiB))
        wait_until_written(gateway)
        before = tenants_of(gateway)["alpha"]["tiers"]
        flood(gateway, BETA, 80)
        wait_until_written(gateway)
        after = tenants_of(gateway)
        assert after["alpha"]["tiers"] == before
        assert 8 * MiB < after["beta"]["tiers"]["host"]["nbytes"] <= 12 * MiB
        assert 20 * MiB < after["beta"]["tiers"]["disk"]["nbytes"] <= 24 * MiB


# --- restarts ---------------------------------------------------------------------------------------------------------


class Work:
    """Threads that write, overwrite, delete and upload in parts as both tenants, until the gateway dies under them."""

    def __init__(self, gateway: RunningGateway, seed: int) -> None:
        self._gateway = gateway
        self.stopped = threading.Event()
        who = [ALPHA, ALPHA, BETA, BETA]
        self._threads = [threading.Thread(target=self._work, args=(each, seed + n)) for n, each in enumerate(who)]
        self._threads.append(threading.Thread(target=self._upload_in_parts, args=(seed,)))
        for thread in self._threads:
            thread.start()

    def _work(self, credential: Credential, seed: int) -> None:
        choose = random.Random(seed)
        with client_of(self._gateway, credential) as client:
            while not self.stopped.is_set():
                key = f"key-{choose.randrange(12)}"
                try:
                    if choose.random() < 0.25:
                        client.delete(BUCKET, key)
                    else:
                        client.put(BUCKET, key, choose.randbytes(choose.choice(SIZES)))
                except GatewayError as error:
                    if error.code not in ("SlowDown", "QuotaExceeded"):
                        return

    def _upload_in_parts(self, seed: int) -> None:
        s3 = s3_client(self._gateway, BETA)
        number = 0
        while not self.stopped.is_set():
            number += 1
            name = {"Bucket": BUCKET, "Key": f"parts-{(seed + number) % 4}"}
            try:
                upload = name | {"UploadId": s3.create_multipart_upload(**name)["UploadId"]}
                part = s3.upload_part(**upload, PartNumber=1, Body=bytes(300_000))
                if number % 3:
                    listed = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
                    s3.complete_multipart_upload(**upload, MultipartUpload=listed)
                elif number % 2:
                    s3.abort_multipart_upload(**upload)
            except Exception as error:
                if "SlowDown" not in str(error):  # of which there are many names: the gateway has died
                    return

    def join(self) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join()


def scan(gateway: RunningGateway) -> dict[str, tuple[int, int]]:
    """Objects and bytes of each tenant, as the files on disk say themselves."""
    objects, nbytes = Counter[str](), Counter[str]()
    for path in (gateway.disk / "objects").rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                record, _ = read_footer(file.fileno())
            objects[record.tenant] += 1
            nbytes[record.tenant] += record.nbytes
    return {tenant: (objects[tenant], nbytes[tenant]) for tenant in ("alpha", "beta")}


def try_to_scan(gateway: RunningGateway) -> dict[str, tuple[int, int]] | None:
    try:
        return scan(gateway)
    except (OSError, CorruptCopy):  # files that belong to nothing are being removed
        return None


def test_after_sigkill_usage_is_what_a_full_scan_counts(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = start_gateway(
        tenants=tenants({"quota": "20MiB"}, {"tiers": {"disk": {"limit": "16MiB"}}}),
        tiers={"host": {"capacity": "16MiB"}, "disk": {"path": str(tmp_path / "disk"), "capacity": "32MiB"}},
    )
    choose = random.Random(20261126)
    seen = 0
    for turn in range(KILLS):
        gateway.config["store"]["ack"] = choose.choice(["memory", "disk"])
        work = Work(gateway, 100 * turn)
        time.sleep(choose.uniform(0.1, 1.0))
        gateway.kill()
        work.join()
        gateway.start()
        reported = tenants_of(gateway)
        on_disk = {name: stats["tiers"]["disk"] for name, stats in reported.items()}
        usage = {name: (held["objects"], held["nbytes"]) for name, held in on_disk.items()}
        deadline = time.monotonic() + 30
        while (found := try_to_scan(gateway)) != usage and time.monotonic() < deadline:
            time.sleep(0.1)  # files that belong to nothing are removed a moment after the start
        assert found == usage
        for name, stats in reported.items():
            assert stats["nbytes"] == usage[name][1], "the quota counts the same bytes"
            assert stats["tiers"]["host"]["nbytes"] == 0
        assert usage["alpha"][1] <= 20 * MiB
        assert usage["beta"][1] <= 16 * MiB
        seen += usage["alpha"][0] + usage["beta"][0]
    assert seen > KILLS
    gateway.restart()
    assert tenants_of(gateway) == reported, "and a restart in peace changes nothing"
