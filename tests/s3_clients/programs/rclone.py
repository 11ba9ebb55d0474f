"""rclone, with the remote configured by its environment variables: S3 of no provider that it knows."""

import json
import os
from pathlib import Path

from answering import ACCESS_KEY, BUCKET, ENDPOINT, REGION, SECRET_KEY, answer, run

os.environ |= {
    "RCLONE_CONFIG_KVGATE_TYPE": "s3",
    "RCLONE_CONFIG_KVGATE_PROVIDER": "Other",
    "RCLONE_CONFIG_KVGATE_ENDPOINT": ENDPOINT,
    "RCLONE_CONFIG_KVGATE_REGION": REGION,
    "RCLONE_CONFIG_KVGATE_ACCESS_KEY_ID": ACCESS_KEY,
    "RCLONE_CONFIG_KVGATE_SECRET_ACCESS_KEY": SECRET_KEY,
}
os.environ.pop("AWS_CA_BUNDLE", None)  # it cannot read this one, but SSL_CERT_FILE
REMOTE = f"kvgate:{BUCKET}"


def put(key: str, path: str) -> None:
    run("rclone", "copyto", path, f"{REMOTE}/{key}")


def get(key: str, path: str) -> None:
    run("rclone", "copyto", f"{REMOTE}/{key}", path)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    with Path(path).open("wb") as to:
        run("rclone", "cat", "--offset", str(start), "--count", str(stop - start), f"{REMOTE}/{key}", stdout=to)


def list_under(prefix: str) -> list[tuple[str, int]]:
    listed = json.loads(run("rclone", "lsjson", "--recursive", "--files-only", f"{REMOTE}/{prefix}"))
    return [(f"{prefix}{item['Path']}", item["Size"]) for item in listed]


def upload(key: str, path: str) -> None:
    """From a stream: it goes up in parts from 100 KiB on, a file only from 200 MiB on."""
    with Path(path).open("rb") as body:
        run("rclone", "rcat", f"{REMOTE}/{key}", stdin=body)


def copy(key: str, to: str) -> None:
    run("rclone", "copyto", f"{REMOTE}/{key}", f"{REMOTE}/{to}")


def delete(key: str) -> None:
    run("rclone", "deletefile", f"{REMOTE}/{key}")


def delete_under(prefix: str) -> None:
    run("rclone", "purge", f"{REMOTE}/{prefix}")


def sync_up(folder: str, prefix: str) -> None:
    run("rclone", "sync", folder, f"{REMOTE}/{prefix}")


def sync_down(prefix: str, folder: str) -> None:
    run("rclone", "sync", f"{REMOTE}/{prefix}", folder)


OPERATIONS = put, get, get_range, list_under, upload, copy, delete, delete_under, sync_up, sync_down

answer(run("rclone", "version").splitlines()[0], *OPERATIONS)
