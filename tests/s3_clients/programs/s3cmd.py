"""s3cmd. It needs `host_bucket` without a bucket in it, because buckets of an address have no names of their own."""

import os
import sys
from pathlib import Path

from answering import ACCESS_KEY, AUTHORITY, BUCKET, CA_BUNDLE, REGION, SCHEME, SECRET_KEY, answer, run

config = {
    "access_key": ACCESS_KEY,
    "secret_key": SECRET_KEY,
    "host_base": AUTHORITY,
    "host_bucket": AUTHORITY,
    "bucket_location": REGION,
    "use_https": str(SCHEME == "https"),
} | ({"ca_certs_file": CA_BUNDLE} if CA_BUNDLE else {})
CONFIG = Path(os.environ["HOME"], ".s3cfg")
CONFIG.write_text("[default]\n" + "".join(f"{name} = {value}\n" for name, value in config.items()))
S3CMD = str(Path(sys.executable).with_name("s3cmd"))


def put(key: str, path: str) -> None:
    """In parts of 15 MiB where it is larger than one."""
    run(S3CMD, "put", path, f"s3://{BUCKET}/{key}")


def get(key: str, path: str) -> None:
    run(S3CMD, "get", "--force", f"s3://{BUCKET}/{key}", path)


def resume(key: str, path: str) -> None:
    """Get what is not in the file yet."""
    run(S3CMD, "get", "--continue", f"s3://{BUCKET}/{key}", path)


def list_under(prefix: str) -> list[tuple[str, int]]:
    lines = run(S3CMD, "ls", "--recursive", f"s3://{BUCKET}/{prefix}").splitlines()
    columns = [line.split(maxsplit=3) for line in lines]
    return [(uri.removeprefix(f"s3://{BUCKET}/"), int(size)) for _, _, size, uri in columns]


def upload(key: str, path: str) -> None:
    put(key, path)


def copy(key: str, to: str) -> None:
    run(S3CMD, "cp", f"s3://{BUCKET}/{key}", f"s3://{BUCKET}/{to}")


def delete(key: str) -> None:
    run(S3CMD, "del", f"s3://{BUCKET}/{key}")


def delete_under(prefix: str) -> None:
    run(S3CMD, "del", "--recursive", f"s3://{BUCKET}/{prefix}")


def sync_up(folder: str, prefix: str) -> None:
    run(S3CMD, "sync", "--delete-removed", f"{folder}/", f"s3://{BUCKET}/{prefix}")


def sync_down(prefix: str, folder: str) -> None:
    run(S3CMD, "sync", "--delete-removed", f"s3://{BUCKET}/{prefix}", f"{folder}/")


OPERATIONS = put, get, resume, list_under, upload, copy, delete, delete_under, sync_up, sync_down

answer(run(S3CMD, "--version").replace("version ", "").strip(), *OPERATIONS)
