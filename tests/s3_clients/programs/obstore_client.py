"""obstore: Rust's object_store. Plain HTTP has to be allowed."""

from pathlib import Path

import obstore
from answering import BUCKET, ENDPOINT, SCHEME, answer
from obstore.store import S3Store

store = S3Store(BUCKET, endpoint=ENDPOINT, client_options={"allow_http": True} if SCHEME == "http" else {})


def put(key: str, path: str) -> None:
    obstore.put(store, key, Path(path).read_bytes(), use_multipart=False)


def get(key: str, path: str) -> None:
    with Path(path).open("wb") as to:
        for piece in obstore.get(store, key):
            to.write(piece)


def get_range(key: str, start: int, stop: int, path: str) -> None:
    Path(path).write_bytes(obstore.get_range(store, key, start=start, end=stop))


def list_under(prefix: str) -> list[tuple[str, int]]:
    return [(item["path"], item["size"]) for page in obstore.list(store, prefix) for item in page]


def upload(key: str, path: str) -> None:
    """In parts of 5 MiB."""
    obstore.put(store, key, Path(path))


def copy(key: str, to: str) -> None:
    obstore.copy(store, key, to)


def delete(key: str) -> None:
    obstore.delete(store, key)


def delete_under(prefix: str) -> None:
    obstore.delete(store, [key for key, _ in list_under(prefix)])


answer(f"obstore {obstore.__version__}", put, get, get_range, list_under, upload, copy, delete, delete_under)
