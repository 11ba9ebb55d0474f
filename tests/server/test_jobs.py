"""Jobs of a gateway that dies."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvgate.client.sync import Client
from kvgate.client.values import Chosen
from tests.gateways import ALPHA, RunningGateway

BUCKET = "alpha-bucket"


def test_a_job_whose_gateway_dies_is_interrupted_and_done_when_begun_anew(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(store={"ack": "disk", "jobs": {"operations": 1}})
    keys = [f"k{number:03}" for number in range(300)]
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        for key in keys:
            client.put(BUCKET, key, b"four")
        first = client.start_job("unpin", Chosen(BUCKET, keys=["none"]))
        while not client.job(first.id).has_ended:
            time.sleep(0.01)
        # a pin of each of many names is written down one by one: it takes a while
        job = client.start_job("pin", Chosen(BUCKET, keys=keys * 20))
        while client.job(job.id).done == 0:
            time.sleep(0.005)
        assert not client.job(job.id).has_ended
    gateway.kill()
    gateway.start()
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, deadline_s=30) as client:
        found = client.job(job.id)
        assert (found.state, found.selected, found.message) == ("interrupted", 6000, "the gateway stopped")
        assert client.job(first.id).state == "done"
        pinned = client.retention().pinned_objects
        assert pinned > 0
        again = client.start_job("pin", Chosen(BUCKET, keys=keys))
        while not (again := client.job(again.id)).has_ended:
            time.sleep(0.05)
        assert (again.state, again.done) == ("done", 300)
        assert client.retention().pinned_objects == 300
