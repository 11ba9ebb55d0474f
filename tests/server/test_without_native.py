"""A gateway whose installation had no C compiler."""

from __future__ import annotations

import os
import random
from pathlib import Path

from kvgate.client.sync import Client
from tests.gateways import ALPHA, RunningGateway, default_config

BODIES = [random.Random(nbytes).randbytes(nbytes) for nbytes in (0, 1000, 300_000, (9 << 20) + 5)]


def test_it_says_so_at_its_start_and_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['kvgate.native'] = None\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    gateway = RunningGateway(tmp_path, default_config(tmp_path), environment={"PYTHONPATH": paths}).start()
    try:
        assert gateway.log.count("kvgate.native was not built: all works, but slower; install a C compiler") == 1
        with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
            for number, body in enumerate(BODIES):
                client.put("alpha-bucket", str(number), body)
            assert [client.get("alpha-bucket", str(number)).body for number in range(len(BODIES))] == BODIES
    finally:
        gateway.stop()
