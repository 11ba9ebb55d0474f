"""`prefetch`, `copy`, `move`, `clear`, `pin`, `unpin` and `jobs` against a real gateway."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvgate.client.sync import Client
from kvgate.client.values import Chosen
from tests.gateways import ALPHA, BETA, RunningGateway

if TYPE_CHECKING:
    from .conftest import Kvgate

BUCKET = "alpha-bucket"


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[Client]:
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        yield client


@pytest.fixture
def alpha(gateway: RunningGateway) -> dict[str, str]:
    """The environment of a user who has alpha's key pair."""
    pair = {"AWS_ACCESS_KEY_ID": ALPHA.access_key, "AWS_SECRET_ACCESS_KEY": ALPHA.secret_key}
    return pair | {"KVGATE_URL": gateway.url}


def put(client: Client, prefix: str, count: int) -> list[str]:
    keys = [f"{prefix}{number:03}" for number in range(count)]
    for key in keys:
        client.put(BUCKET, key, b"four")
    return keys


def tiers(client: Client, key: str) -> list[str]:
    return list(client.explain_keys(BUCKET, [key]).objects[0].tiers)


def on_disk(client: Client, keys: list[str]) -> None:
    """Have keys lie on the disk only."""
    job = client.start_job("move", Chosen(BUCKET, keys=keys), tier="disk")
    while not job.has_ended:
        job = client.job(job.id)
    assert job.state == "done"


def test_a_prefix_is_prefetched_and_its_end_waited_for(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    keys = put(client, "job/p/", 3)
    on_disk(client, keys)
    answer = kvgate("prefetch", "--recursive", f"s3://{BUCKET}/job/p/", env=alpha)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("prefetch: 3 of 3 objects, 12 B, in ")
    assert tiers(client, keys[2]) == ["host", "disk"]


def test_copies_move_between_tiers_and_back(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    (key,) = put(client, "job/m/", 1)
    address = f"s3://{BUCKET}/{key}"
    for arguments, expected in (
        (("copy", "--tier", "disk", address), ["host", "disk"]),
        (("clear", "--tier", "host", address), ["disk"]),
        (("copy", "--tier", "host", address), ["host", "disk"]),
        (("move", "--tier", "disk", "--from", "host", address), ["disk"]),
    ):
        answer = kvgate(*arguments, env=alpha)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert tiers(client, key) == expected


def test_what_does_not_hold_is_named_and_the_status_is_1(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    (key,) = put(client, "job/c/", 1)
    on_disk(client, [key])
    answer = kvgate("clear", "--tier", "disk", f"s3://{BUCKET}/{key}", env=alpha)
    assert answer.returncode == 1
    assert "clear: incomplete" in answer.stdout
    assert "its only copy is in the disk tier" in answer.stdout
    assert f"s3://{BUCKET}/{key}: it has a copy in the disk tier" in answer.stdout
    facts = json.loads(kvgate("prefetch", "--json", f"s3://{BUCKET}/job/none", env=alpha).stdout)
    assert (facts["state"], facts["unmet"], facts["failed"]) == ("incomplete", 1, 1)


def test_pin_with_a_deadline_and_unpin(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    put(client, "job/pin/", 2)
    answer = kvgate("pin", "--for", "1h", "--recursive", f"s3://{BUCKET}/job/pin/", env=alpha)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (rule,) = [rule for rule in client.retention().rules if rule.prefix == "job/pin/"]
    assert rule.pin == "hard"
    assert 3000 < (rule.pin_expires_s or 0) <= 3600
    assert kvgate("pin", "--soft", f"s3://{BUCKET}/job/pin/000", env=alpha).returncode == 0
    assert client.retention().marks >= 1
    assert kvgate("unpin", "--recursive", f"s3://{BUCKET}/job/pin/", env=alpha).returncode == 0
    assert not [rule for rule in client.retention().rules if rule.prefix == "job/pin/"]


def test_clear_everywhere_deletes_and_must_be_asked_for(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    put(client, "job/gone/", 3)
    refused = kvgate("clear", "--recursive", f"s3://{BUCKET}/job/gone/", env=alpha)
    assert refused.returncode == 2
    assert "--everywhere" in refused.stderr
    answer = kvgate("clear", "--everywhere", "--recursive", f"s3://{BUCKET}/job/gone/", env=alpha)
    assert answer.returncode == 0
    assert list(client.list(BUCKET, "job/gone/")) == []


def test_hashes_of_a_prompt_come_from_a_file(
    kvgate: Kvgate, alpha: dict[str, str], client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "hashes"
    file.write_text("0" * 64 + "\n" + "1" * 64 + "\n")
    answer = kvgate("pin", "--space", "a" * 64, "--hashes-from", file, "--json", f"s3://{BUCKET}/", env=alpha)
    facts = json.loads(answer.stdout)
    assert (facts["selected"], facts["failed"], facts["prefix"]) == (2, 2, None)
    assert answer.returncode == 1
    for arguments in (("--hashes-from", file), ("--space", "x", "--hashes-from", file), ("--space", "a" * 64), ()):
        assert kvgate("pin", *arguments, f"s3://{BUCKET}/", env=alpha).returncode == 2


def test_a_job_that_nobody_waits_for_is_found_again(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    put(client, "job/later/", 1)
    answer = kvgate("prefetch", "--no-wait", "--recursive", f"s3://{BUCKET}/job/later/", env=alpha)
    assert answer.returncode == 0
    id = answer.stdout.split()[1]
    assert kvgate("jobs", id, "--wait", env=alpha).returncode == 0
    listed = kvgate("jobs", env=alpha).stdout
    assert id in listed
    assert "prefetch  done" in listed
    assert id in [each["id"] for each in json.loads(kvgate("jobs", "--json", env=alpha).stdout)]
    assert json.loads(kvgate("jobs", id, "--cancel", "--json", env=alpha).stdout)["state"] == "done"
    pair = {"AWS_ACCESS_KEY_ID": BETA.access_key, "AWS_SECRET_ACCESS_KEY": BETA.secret_key}
    theirs = kvgate("jobs", id, env=alpha | pair)
    assert (theirs.returncode, theirs.stdout) == (1, "")
    assert "NoSuchJob" in theirs.stderr
    assert kvgate("jobs", "--wait", env=alpha).returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [("copy", "s3://alpha-bucket/k"), ("move", "s3://alpha-bucket/k"), ("pin", "--for", "soon", "s3://alpha-bucket/k")],
)
def test_a_command_line_without_what_it_needs_is_refused(
    kvgate: Kvgate, alpha: dict[str, str], arguments: tuple[str, ...]
) -> None:
    assert kvgate(*arguments, env=alpha).returncode == 2


def test_a_terminal_sees_how_far_it_is(alpha: dict[str, str], client: Client) -> None:
    put(client, "job/tty/", 400)
    main, secondary = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvgate.cli", "pin", "--recursive", f"s3://{BUCKET}/job/tty/"],
        stdout=subprocess.PIPE,
        stderr=secondary,
        env={**os.environ, **alpha},
    )
    os.close(secondary)
    stdout, _ = process.communicate(timeout=60)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(main, 65536):
            shown += piece
    os.close(main)
    assert process.returncode == 0
    assert stdout.startswith(b"pin: 400 of 400 objects, 1.6 KiB, in ")
    assert shown.endswith(b"\r\x1b[K")
    client.retain(Chosen(BUCKET, prefix="job/tty/"), pin="none")


def test_a_wait_that_is_broken_off_leaves_the_job_at_work(alpha: dict[str, str], client: Client) -> None:
    put(client, "job/int/", 200)
    before = {job.id for job in client.jobs()}
    code = (
        "import signal, sys, time, kvgate.cli.job as job\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a job in the background ignores
        "class Slow:\n"
        "    def sleep(_):\n"
        "        print('it waits', flush=True)\n"
        "        time.sleep(60)\n"
        "job.time = Slow\n"
        "from kvgate.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "prefetch", "--recursive", f"s3://{BUCKET}/job/int/"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **alpha},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "it waits\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    (id,) = {job.id for job in client.jobs()} - before
    assert process.returncode == 130
    assert stderr == f"job {id} goes on; `kvgate jobs --cancel {id}` ends it\n"
    while not (job := client.job(id)).has_ended:
        pass
    assert job.state == "done"


def test_compress_and_decompress_say_what_it_is_worth(kvgate: Kvgate, alpha: dict[str, str], client: Client) -> None:
    key, body = "job/z/words", b"words " * 100_000
    client.put(BUCKET, key, body)
    on_disk(client, [key])
    answer = kvgate("compress", "--tier", "disk", "--recursive", f"s3://{BUCKET}/job/z/", env=alpha)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("compress: 1 of 1 object, 585.9 KiB, ")
    assert " less on disk, in " in answer.stdout
    assert client.get(BUCKET, key).body == body
    on_disk(client, [key])
    answer = kvgate("decompress", "--json", f"s3://{BUCKET}/{key}", env=alpha)
    facts = json.loads(answer.stdout)
    assert (answer.returncode, facts["kind"], facts["state"]) == (0, "decompress", "done")
    assert facts["saved_nbytes"] < -500_000
    answer = kvgate("compress", "--codec", "rle", f"s3://{BUCKET}/{key}", env=alpha)
    assert answer.returncode == 1
    assert "zstd-split" in answer.stderr
