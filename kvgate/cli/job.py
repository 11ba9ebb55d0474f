"""What the verbs have in common that begin a job: which objects are meant, and watching it until its end."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from kvgate.cli import connection
from kvgate.cli.address import Address, bucket_address
from kvgate.cli.hashes import HASH, read_hashes
from kvgate.cli.terminal import Progress, bar, human_duration, human_size, printable
from kvgate.client.sync import Client
from kvgate.client.values import Chosen, Job
from kvgate.errors import ConfigError

_FIRST_S, _MOST_S = 0.05, 1.0
"""How long is waited before the first look at a job, and between two at most."""

_DONE = "done"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that begins a job."""
    parser.add_argument(
        "address", type=bucket_address, metavar="s3://BUCKET[/KEY]", help="an object, a prefix of keys, or a bucket"
    )
    parser.add_argument("--recursive", action="store_true", help="every key that begins with KEY")
    parser.add_argument("--space", metavar="ID", help="the space of the hashes, 64 hex digits")
    parser.add_argument("--hashes-from", metavar="FILE", help="chunk hashes, one a line; - is standard input")
    parser.add_argument(
        "--wait", action=argparse.BooleanOptionalAction, default=True, help="wait for the end, or come back at once"
    )
    parser.add_argument("--json", action="store_true", help="print the job as one JSON object")
    connection.add_arguments(parser)


def run(options: argparse.Namespace, kind: str, **how: Any) -> int:
    """Begin a job and, unless told otherwise, wait for it; 0 when what was asked for holds."""
    chosen = _chosen(options)
    with connection.connect(options) as client:
        job = client.start_job(kind, chosen, **how)
        if not options.wait:
            if options.json:
                print_json(job)
            else:
                print(f"job {job.id} has begun; `kvgate jobs {job.id}` says how far it is")
            return 0
        job = watch(client, job)
    show(job, as_json=options.json)
    return 0 if job.state == _DONE else 1


def watch(client: Client, job: Job) -> Job:
    """Wait for the end of a job, and say how far it is meanwhile. It goes on when the waiting is broken off."""
    progress, delay_s = Progress(), _FIRST_S
    try:
        while not job.has_ended:
            time.sleep(delay_s)
            delay_s = min(_MOST_S, delay_s * 2)
            job = client.job(job.id)
            progress.say(_line(job))
    except BaseException:
        progress.end()
        print(f"job {job.id} goes on; `kvgate jobs --cancel {job.id}` ends it", file=sys.stderr)
        raise
    progress.end()
    return job


def show(job: Job, *, as_json: bool) -> None:
    """Print how a job ended, or how far it is."""
    if as_json:
        print_json(job)
        return
    what = job.kind if job.state == _DONE else f"{job.kind}: {job.state}"
    parts = [f"{job.done} of {job.total} object{'' if job.total == 1 else 's'}, {human_size(job.done_nbytes)}"]
    if job.saved_nbytes:
        word = "less" if job.saved_nbytes > 0 else "more"
        parts.append(f"{human_size(abs(job.saved_nbytes))} {word} on disk")
    parts += [f"{count} {word}" for word, count in (("skipped", job.skipped), ("failed", job.failed)) if count]
    if job.started_ms is not None and job.ended_ms is not None:
        parts.append(f"in {human_duration((job.ended_ms - job.started_ms) / 1000)}")
    print(f"{what}: {', '.join(parts)}")
    if job.message:
        print(f"  {printable(job.message)}")
    for reason, count in job.reasons:
        print(f"  {count} object{'' if count == 1 else 's'}: {printable(reason)}")
    if job.unmet:
        print(f"it does not hold of {job.unmet} object{'' if job.unmet == 1 else 's'}:")
        for key, why in job.examples:
            print(f"  {printable(str(Address(job.bucket, key)))}: {printable(why)}")
        if job.unmet > len(job.examples):
            print(f"  and {job.unmet - len(job.examples)} more")


def print_json(job: Job) -> None:
    """Print a job as one JSON object."""
    print(json.dumps(members(job), indent=2))


def members(job: Job) -> Mapping[str, Any]:
    """A job as JSON has it."""
    return dataclasses.asdict(job)


def _chosen(options: argparse.Namespace) -> Chosen:
    """Which objects are meant. Raises ConfigError."""
    address: Address = options.address
    if options.hashes_from is not None:
        if address.key or options.recursive:
            raise ConfigError("--hashes-from needs a bucket alone, s3://BUCKET/, and no --recursive")
        if options.space is None or not HASH.fullmatch(options.space):
            raise ConfigError("--space: expected 64 lower-case hex digits, the space of the hashes")
        return Chosen(address.bucket, space=options.space, hashes=read_hashes(options.hashes_from))
    if options.space is not None:
        raise ConfigError("--space goes together with --hashes-from")
    if options.recursive:
        return Chosen(address.bucket, prefix=address.key)
    if not address.key:
        raise ConfigError(f"{address} names a bucket; add a key, or --recursive for everything in it")
    return Chosen(address.bucket, keys=[address.key])


def _line(job: Job) -> str:
    """How far a job is, in one line."""
    if job.state == "waiting":
        return f"{job.kind}: waits for other jobs"
    if job.state == "checking":
        return f"{job.kind}: looks whether it holds of every object"
    worked = job.done + job.skipped + job.failed
    share = worked / job.total if job.total else 0.0
    left = f", {human_duration((job.total - worked) / job.objects_s)} left" if job.objects_s else ""
    return (
        f"{job.kind} {bar(share)} {worked} of {job.total} objects, {human_size(job.done_nbytes)}, "
        f"{human_size(int(job.nbytes_s))}/s{left}"
    )
