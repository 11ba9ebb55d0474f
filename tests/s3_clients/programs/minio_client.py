"""minio-py, which asks for the bucket's location before anything else."""

from pathlib import Path

import minio
from answering import ACCESS_KEY, AUTHORITY, BUCKET, SCHEME, SECRET_KEY, answer
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject

s3 = minio.Minio(AUTHORITY, ACCESS_KEY, SECRET_KEY, secure=SCHEME == "https")


def put(key: str, path: str) -> None:
    """In parts of 5 MiB where it is larger than one."""
    s3.fput_object(BUCKET, key, path)


def get(key: str, path: str) -> None:
    s3.fget_object(BUCKET, key, path)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    got = s3.get_object(BUCKET, key, offset=start, length=stop - start)
    try:
        Path(path).write_bytes(got.read())
    finally:
        got.close()
        got.release_conn()


def list_under(prefix: str) -> list[tuple[str, int]]:
    return [(item.object_name, item.size) for item in s3.list_objects(BUCKET, prefix, recursive=True)]


def upload(key: str, path: str) -> None:
    put(key, path)


def copy(key: str, to: str) -> None:
    s3.copy_object(BUCKET, to, CopySource(BUCKET, key))


def delete(key: str) -> None:
    s3.remove_object(BUCKET, key)


def delete_under(prefix: str) -> None:
    errors = list(s3.remove_objects(BUCKET, [DeleteObject(key) for key, _ in list_under(prefix)]))
    assert not errors, errors


answer(f"minio {minio.__version__}", put, get, get_range, list_under, upload, copy, delete, delete_under)
