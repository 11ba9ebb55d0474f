"""Every client with every operation that it has, with default settings, against a running gateway.

What a client writes is looked at by boto3 in the tests' own process, and what a client reads was written by that, so
that a mistake that undoes itself on the way back is seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import RunningGateway
from tests.s3_clients.clients import BUCKET, ClientError, Session, offering
from tests.s3_clients.requests import Requests

MiB = 1 << 20
SIZES = [0, 1000, 9 * MiB + 17]
LARGE_NBYTES = 20 * MiB + 5
KEYS = {
    "space": "with space",
    "plus": "a+b",
    "percent": "a%2Bb",
    "at and equals": "model@1@0=abc",
    "unicode": "ünï/漢字/🙂",
    "double slash": "a//b",
    "punctuation": "(1)*'!$&,;:~",
    "xml": '<xml>&"quotes"',
    "question mark and hash": "what?#fragment",
    "long": "k" * 200,
}


@pytest.fixture
def client(gateway: RunningGateway, run_client: Callable[..., Session], request: pytest.FixtureRequest) -> Session:
    return run_client(request.param, gateway.url)


def with_clients(*operations: str) -> pytest.MarkDecorator:
    """Run a test with each client that has all of some operations."""
    able = [client for client in offering(operations[0]) if client.operations.issuperset(operations)]
    return pytest.mark.parametrize("client", able, ids=[client.name for client in able], indirect=True)


def with_clients_and_keys(operation: str) -> pytest.MarkDecorator:
    """Run a test with each client that has an operation, and each of KEYS that the client can say."""
    pairs = [(client, kind) for client in offering(operation) for kind in KEYS if kind not in client.cannot_say]
    ids = [f"{client.name}-{kind}" for client, kind in pairs]
    return pytest.mark.parametrize(("client", "kind"), pairs, ids=ids, indirect=["client"])


@pytest.fixture
def source(tmp_path: Path) -> Callable[[int], Path]:
    """Make a file of random bytes."""

    def make(nbytes: int) -> Path:
        path = tmp_path / f"source {nbytes}"
        path.write_bytes(os.urandom(nbytes))
        return path

    return make


def stored(reference: Any, key: str) -> bytes:
    body: bytes = reference.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


def keys_under(reference: Any, prefix: str) -> list[str]:
    pages = reference.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


@with_clients("put")
@pytest.mark.parametrize("nbytes", SIZES)
def test_what_is_put_is_stored(client: Session, reference: Any, source: Callable[[int], Path], nbytes: int) -> None:
    path, key = source(nbytes), f"{client.name}/put/{nbytes}"
    client.call("put", key=key, path=path)
    assert stored(reference, key) == path.read_bytes()


@with_clients("get")
@pytest.mark.parametrize("nbytes", [*SIZES, LARGE_NBYTES])
def test_what_is_stored_is_got(client: Session, reference: Any, tmp_path: Path, nbytes: int) -> None:
    body, key, path = os.urandom(nbytes), f"{client.name}/get/{nbytes}", tmp_path / "got"
    reference.put_object(Bucket=BUCKET, Key=key, Body=body)
    client.call("get", key=key, path=path)
    assert path.read_bytes() == body


@with_clients("get_range")
def test_ranges(client: Session, reference: Any, tmp_path: Path) -> None:
    nbytes = 2 * MiB + 17
    body, key, path = os.urandom(nbytes), f"{client.name}/ranges", tmp_path / "got"
    reference.put_object(Bucket=BUCKET, Key=key, Body=body)
    for start, stop in ((0, 1), (5, 10), (MiB - 1, MiB + 1), (1000, nbytes - 1), (nbytes - 3, nbytes), (0, nbytes)):
        client.call("get_range", key=key, start=start, stop=stop, path=path)
        assert path.read_bytes() == body[start:stop], (start, stop)


@with_clients("resume")
def test_a_download_is_resumed(client: Session, reference: Any, tmp_path: Path) -> None:
    body, key, path = os.urandom(2 * MiB), f"{client.name}/resumed", tmp_path / "got"
    reference.put_object(Bucket=BUCKET, Key=key, Body=body)
    path.write_bytes(body[:1000])
    client.call("resume", key=key, path=path)
    assert path.read_bytes() == body


@with_clients_and_keys("put")
def test_a_key_is_the_same_on_both_sides(
    client: Session, reference: Any, source: Callable[[int], Path], tmp_path: Path, kind: str
) -> None:
    folder, path, back = f"{client.name}/keys/{kind.replace(' ', '-')}/", source(100), tmp_path / "back"
    key = folder + KEYS[kind]
    client.call("put", key=key, path=path)
    assert keys_under(reference, folder) == [key]
    assert stored(reference, key) == path.read_bytes()
    assert client.get(key, 100, back) == path.read_bytes()
    if client.offers("list_under"):
        assert client.call("list_under", prefix=folder) == [[key, 100]]
    if client.offers("delete"):
        client.call("delete", key=key)
        assert key not in keys_under(reference, folder)


@pytest.fixture(scope="module")
def many(reference: Any) -> dict[str, int]:
    """The sizes of more objects than one page of a listing holds, by key."""
    sizes = {f"many/{number % 7}/a b+{number}": number % 5 for number in range(1005)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: reference.put_object(Bucket=BUCKET, Key=key, Body=b"x" * sizes[key]), sizes))
    return sizes


@with_clients("list_under")
def test_a_listing_has_every_object_once(client: Session, many: dict[str, int], requests: Requests) -> None:
    listed = client.call("list_under", prefix="many/")
    assert len(listed) == len(many)
    assert dict(listed) == many
    assert requests.count("ListObjectsV2", "ListObjects") >= 2


@with_clients("upload")
def test_a_large_body_goes_up_in_parts(
    client: Session, reference: Any, source: Callable[[int], Path], requests: Requests
) -> None:
    path, key = source(2 * client.client.part_nbytes + 5), f"{client.name}/parts"
    client.call("upload", key=key, path=path)
    assert requests.count("UploadPart") == 3
    assert requests.count("CompleteMultipartUpload") == 1
    assert stored(reference, key) == path.read_bytes()


@with_clients("copy")
@pytest.mark.parametrize("nbytes", [0, 1000, 9 * MiB + 17])
def test_copies_are_equal(client: Session, reference: Any, requests: Requests, nbytes: int) -> None:
    body, key = os.urandom(nbytes), f"{client.name}/copy/{nbytes}"
    reference.put_object(Bucket=BUCKET, Key=key, Body=body)
    client.call("copy", key=key, to=f"{key} to")
    assert stored(reference, f"{key} to") == body
    assert requests.count("CopyObject") + requests.count("UploadPartCopy") >= 1
    assert requests.count("PutObject") == 1  # what was copied


@with_clients_and_keys("copy")
def test_any_key_is_copied(client: Session, reference: Any, kind: str) -> None:
    key = f"{client.name}/copied/{KEYS[kind]}"
    reference.put_object(Bucket=BUCKET, Key=key, Body=kind.encode())
    client.call("copy", key=key, to=f"{key} copy")
    assert stored(reference, f"{key} copy") == kind.encode()


@with_clients("delete_under")
def test_a_folder_is_deleted(client: Session, reference: Any) -> None:
    prefix = f"{client.name}/deleted/"
    for name in ("a", "b c", "b+d", "e/f@g=1", "e/h&i"):
        reference.put_object(Bucket=BUCKET, Key=prefix + name, Body=b"x")
    reference.put_object(Bucket=BUCKET, Key=f"{client.name}/deleted-not", Body=b"x")
    client.call("delete_under", prefix=prefix)
    assert keys_under(reference, f"{client.name}/deleted") == [f"{client.name}/deleted-not"]


@with_clients("get")
def test_what_is_not_there_is_not_got(client: Session, tmp_path: Path) -> None:
    path = tmp_path / "got"
    if client.name == "rclone":  # takes it for an empty folder
        client.call("get", key="rclone/never", path=path)
        assert not path.exists()
    else:
        with pytest.raises(ClientError, match=r"(?i)404|not found|NoSuchKey|no such|does not exist"):
            client.call("get", key=f"{client.name}/never", path=path)


@with_clients("sync_up", "sync_down")
def test_folders_are_synchronised(client: Session, reference: Any, tmp_path: Path, requests: Requests) -> None:
    prefix, folder, back = f"{client.name}/synced/", tmp_path / "folder", tmp_path / "back"
    write_tree(folder, {"a": b"1", "b/c d": b"2", "b/e+f@g=1": b"", "large": os.urandom(16 * MiB)})
    client.call("sync_up", folder=folder, prefix=prefix)
    assert tree_under(reference, prefix) == read_tree(folder)

    sent = requests.count("PutObject", "UploadPart")
    client.call("sync_up", folder=folder, prefix=prefix)
    assert requests.count("PutObject", "UploadPart", "CopyObject") == sent

    write_tree(folder, {"a": b"longer", "new": b"3"})
    (folder / "b/c d").unlink()
    client.call("sync_up", folder=folder, prefix=prefix)
    assert tree_under(reference, prefix) == read_tree(folder)

    back.mkdir()
    client.call("sync_down", prefix=prefix, folder=back)
    assert read_tree(back) == read_tree(folder)
    got = requests.count("GetObject")
    client.call("sync_down", prefix=prefix, folder=back)
    assert requests.count("GetObject") == got


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tree_under(reference: Any, prefix: str) -> dict[str, bytes]:
    return {key.removeprefix(prefix): stored(reference, key) for key in keys_under(reference, prefix)}
