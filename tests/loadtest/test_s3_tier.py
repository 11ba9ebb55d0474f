from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_clients_are_compared_on_the_same_bytes() -> None:
    program = [sys.executable, str(ROOT / "loadtest" / "s3_tier.py"), "--server", "kvgate"]
    ended = subprocess.run(
        [*program, "--nbytes", "1MiB", "--rounds", "1", "--at-once", "2"],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    for client in ("S3 tier", "boto3", "transfer", "awscrt"):
        for row in (f"PUT   1MiB x2  {client}", f"GET   1MiB x2  {client}", f"there   {client}", f"absent  {client}"):
            assert row in ended.stdout
