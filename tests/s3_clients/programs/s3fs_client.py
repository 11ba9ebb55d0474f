"""s3fs, as fsspec's users see it: paths of bucket and key."""

from pathlib import Path

import s3fs
from answering import BUCKET, answer

fs = s3fs.S3FileSystem()


def put(key: str, path: str) -> None:
    fs.put_file(path, f"{BUCKET}/{key}")


def get(key: str, path: str) -> None:
    fs.get_file(f"{BUCKET}/{key}", path)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    Path(path).write_bytes(fs.cat_file(f"{BUCKET}/{key}", start=start, end=stop))


def list_under(prefix: str) -> list[tuple[str, int]]:
    fs.invalidate_cache()  # it remembers listings; others have written meanwhile
    found = fs.find(f"{BUCKET}/{prefix}", detail=True)
    return [(path.removeprefix(f"{BUCKET}/"), int(item["size"])) for path, item in found.items()]


def upload(key: str, path: str) -> None:
    """In parts of 50 MiB."""
    with fs.open(f"{BUCKET}/{key}", "wb") as to, Path(path).open("rb") as body:
        while piece := body.read(1 << 20):
            to.write(piece)


def copy(key: str, to: str) -> None:
    fs.cp_file(f"{BUCKET}/{key}", f"{BUCKET}/{to}")  # as fs.copy, without wildcards


def delete(key: str) -> None:
    fs.rm_file(f"{BUCKET}/{key}")


def delete_under(prefix: str) -> None:
    fs.rm(f"{BUCKET}/{prefix}", recursive=True)


answer(f"s3fs {s3fs.__version__}", put, get, get_range, list_under, upload, copy, delete, delete_under)
