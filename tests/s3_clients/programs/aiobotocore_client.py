"""aiobotocore: single requests, and a multipart upload by hand, for it has no transfer manager."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiobotocore
from aiobotocore.session import get_session
from answering import BUCKET, answer

PART_NBYTES = 5 << 20

runner = asyncio.Runner()
s3: Any = runner.run(AsyncExitStack().enter_async_context(get_session().create_client("s3")))


def synchronous(operation: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        return runner.run(operation(**arguments))

    call.__name__ = operation.__name__
    return call


async def put(key: str, path: str) -> None:
    with Path(path).open("rb") as body:
        await s3.put_object(Bucket=BUCKET, Key=key, Body=body)


async def get(key: str, path: str) -> None:
    got = await s3.get_object(Bucket=BUCKET, Key=key)
    Path(path).write_bytes(await got["Body"].read())


async def get_range(key: str, start: int, stop: int, path: str) -> None:
    got = await s3.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={start}-{stop - 1}")
    Path(path).write_bytes(await got["Body"].read())


async def list_under(prefix: str) -> list[tuple[str, int]]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [(item["Key"], item["Size"]) async for page in pages for item in page.get("Contents", [])]


async def upload(key: str, path: str) -> None:
    target = {"Bucket": BUCKET, "Key": key}
    target["UploadId"] = (await s3.create_multipart_upload(**target))["UploadId"]
    parts = []
    with Path(path).open("rb") as body:
        while part := body.read(PART_NBYTES):
            number = len(parts) + 1
            sent = await s3.upload_part(**target, PartNumber=number, Body=part)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    listed = await s3.list_parts(**target)
    assert [part["ETag"] for part in listed["Parts"]] == [part["ETag"] for part in parts]
    await s3.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})


async def copy(key: str, to: str) -> None:
    await s3.copy_object(Bucket=BUCKET, Key=to, CopySource={"Bucket": BUCKET, "Key": key})


async def delete(key: str) -> None:
    await s3.delete_object(Bucket=BUCKET, Key=key)


async def delete_under(prefix: str) -> None:
    keys = [{"Key": key} for key, _ in await list_under(prefix)]
    deleted = await s3.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
    assert not deleted.get("Errors"), deleted


OPERATIONS = put, get, get_range, list_under, upload, copy, delete, delete_under

answer(f"aiobotocore {aiobotocore.__version__}", *map(synchronous, OPERATIONS))
