"""pyarrow's file system, on AWS's SDK for C++. Its streams go up in parts, small ones too."""

import shutil
from pathlib import Path

import pyarrow
from answering import ACCESS_KEY, AUTHORITY, BUCKET, CA_BUNDLE, REGION, SCHEME, SECRET_KEY, answer
from pyarrow.fs import FileSelector, FileType, S3FileSystem

fs = S3FileSystem(
    access_key=ACCESS_KEY,
    secret_key=SECRET_KEY,
    region=REGION,
    scheme=SCHEME,
    endpoint_override=AUTHORITY,
    **({"tls_ca_file_path": CA_BUNDLE} if CA_BUNDLE else {}),
)


def put(key: str, path: str) -> None:
    with Path(path).open("rb") as body, fs.open_output_stream(f"{BUCKET}/{key}") as to:
        shutil.copyfileobj(body, to)


def get(key: str, path: str) -> None:
    with fs.open_input_stream(f"{BUCKET}/{key}") as body, Path(path).open("wb") as to:
        shutil.copyfileobj(body, to, 1 << 20)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    with fs.open_input_file(f"{BUCKET}/{key}") as body:
        Path(path).write_bytes(body.read_at(stop - start, start))


def list_under(prefix: str) -> list[tuple[str, int]]:
    found = fs.get_file_info(FileSelector(f"{BUCKET}/{prefix}", recursive=True))
    return [(item.path.removeprefix(f"{BUCKET}/"), item.size) for item in found if item.type is FileType.File]


def upload(key: str, path: str) -> None:
    put(key, path)


def copy(key: str, to: str) -> None:
    fs.copy_file(f"{BUCKET}/{key}", f"{BUCKET}/{to}")


def delete(key: str) -> None:
    fs.delete_file(f"{BUCKET}/{key}")


def delete_under(prefix: str) -> None:
    fs.delete_dir(f"{BUCKET}/{prefix}")


answer(f"pyarrow {pyarrow.__version__}", put, get, get_range, list_under, upload, copy, delete, delete_under)
