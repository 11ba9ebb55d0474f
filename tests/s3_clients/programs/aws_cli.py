"""aws-cli: `aws s3` for files and folders, `aws s3api` for single requests. Its command is the first argument."""

import json
import sys

from answering import BUCKET, answer, run

AWS = sys.argv[1]


def put(key: str, path: str) -> None:
    run(AWS, "s3api", "put-object", "--bucket", BUCKET, "--key", key, "--body", path)


def get(key: str, path: str) -> None:
    run(AWS, "s3", "cp", f"s3://{BUCKET}/{key}", path)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    run(AWS, "s3api", "get-object", "--bucket", BUCKET, "--key", key, "--range", f"bytes={start}-{stop - 1}", path)


def list_under(prefix: str) -> list[tuple[str, int]]:
    listed = json.loads(run(AWS, "s3api", "list-objects-v2", "--bucket", BUCKET, "--prefix", prefix) or "{}")
    return [(item["Key"], item["Size"]) for item in listed.get("Contents", [])]


def upload(key: str, path: str) -> None:
    run(AWS, "s3", "cp", path, f"s3://{BUCKET}/{key}")


def copy(key: str, to: str) -> None:
    run(AWS, "s3", "cp", f"s3://{BUCKET}/{key}", f"s3://{BUCKET}/{to}")


def delete(key: str) -> None:
    run(AWS, "s3", "rm", f"s3://{BUCKET}/{key}")


def delete_under(prefix: str) -> None:
    run(AWS, "s3", "rm", "--recursive", f"s3://{BUCKET}/{prefix}")


def sync_up(folder: str, prefix: str) -> None:
    run(AWS, "s3", "sync", "--delete", folder, f"s3://{BUCKET}/{prefix}")


def sync_down(prefix: str, folder: str) -> None:
    run(AWS, "s3", "sync", "--delete", f"s3://{BUCKET}/{prefix}", folder)


OPERATIONS = put, get, get_range, list_under, upload, copy, delete, delete_under, sync_up, sync_down

answer(run(AWS, "--version").split()[0].replace("/", " "), *OPERATIONS)
