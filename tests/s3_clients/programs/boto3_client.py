"""boto3: single requests of its client, and its transfer manager for what goes up or is copied in parts."""

from pathlib import Path

import boto3
from answering import BUCKET, answer

s3 = boto3.client("s3")


def put(key: str, path: str) -> None:
    with Path(path).open("rb") as body:
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)


def get(key: str, path: str) -> None:
    s3.download_file(BUCKET, key, path)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    got = s3.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={start}-{stop - 1}")
    Path(path).write_bytes(got["Body"].read())


def list_under(prefix: str) -> list[tuple[str, int]]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [(item["Key"], item["Size"]) for page in pages for item in page.get("Contents", [])]


def upload(key: str, path: str) -> None:
    s3.upload_file(path, BUCKET, key)


def copy(key: str, to: str) -> None:
    s3.copy({"Bucket": BUCKET, "Key": key}, BUCKET, to)


def delete(key: str) -> None:
    s3.delete_object(Bucket=BUCKET, Key=key)


def delete_under(prefix: str) -> None:
    for deleted in boto3.resource("s3").Bucket(BUCKET).objects.filter(Prefix=prefix).delete():
        assert not deleted.get("Errors"), deleted


answer(f"boto3 {boto3.__version__}", put, get, get_range, list_under, upload, copy, delete, delete_under)
