"""read, reserve and slice as signed requests to the API over a real store."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64encode
from typing import Any

import jsonschema
import pytest
from awscrt.checksums import crc64nvme

from kvgate.chunk.frame import FRAME_NBYTES, Frame, Status, decode_frame
from kvgate.chunk.header import ChunkHeader
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.safetensors import decode_header
from kvgate.messages import Response, views
from kvgate.store.config import StoreConfig
from tests.client.chunks import SPACE, chunks
from tests.kvapi.test_api import (
    _check,
    document,  # noqa: F401  a fixture
)

READ, RESERVE, SLICE = (f"/_kv/v1/{name}" for name in ("read", "reserve", "slice"))


async def frames(response: Response) -> list[tuple[Frame, bytes]]:
    assert not isinstance(response.body, bytes)
    assert response.body.nbytes is None
    stream = b"".join([bytes(view) async for view in views(response.body)])
    response.body.close()
    got = []
    while stream:
        frame = decode_frame(stream[:FRAME_NBYTES])
        got.append((frame, stream[FRAME_NBYTES : FRAME_NBYTES + frame.nbytes]))
        stream = stream[FRAME_NBYTES + frame.nbytes :]
    return got


async def read(opened: Any, members: dict[str, Any], tenant: str = "alpha") -> Response:
    body = json.dumps({"bucket": "bucket", "space": SPACE.id} | members).encode()
    return await opened.request("POST", READ, body, tenant=tenant)  # type: ignore[no-any-return]


def hexed(hashes: list[bytes]) -> list[str]:
    return [chunk_hash.hex() for chunk_hash in hashes]


# --- read -------------------------------------------------------------------------------------------------------------


async def test_read_gives_a_frame_for_each_hash(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(2)
        bodies = [body for _, body in chunks(opened.tenants["alpha"].salt, 2)]
        response = await read(opened, {"hashes": hexed([hashes[1], bytes(32), hashes[0]])})
        assert (response.status, response.operation) == (200, "Read")
        assert response.headers["Content-Type"] == "application/vnd.kvgate.frames"
        got = await frames(response)
        assert [payload for _, payload in got] == [bodies[1], b"", bodies[0]]
        assert [frame for frame, _ in got] == [
            Frame(0, Status.PRESENT, len(bodies[1]), crc64nvme(bodies[1])),
            Frame(1, Status.MISSING),
            Frame(2, Status.PRESENT, len(bodies[0]), crc64nvme(bodies[0])),
        ]
        assert await frames(await read(opened, {"hashes": []})) == []


async def test_read_gives_slices(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(1)
        ((_, body),) = chunks(opened.tenants["alpha"].salt, 1)
        layer = SPACE.layout.layer_range(2, 3).in_file()
        ((frame, payload),) = await frames(await read(opened, {"hashes": hexed(hashes), "layers": "2"}))
        assert payload == body[layer.start : layer.stop]
        assert frame.crc64nvme == crc64nvme(payload)
        ((_, payload),) = await frames(await read(opened, {"hashes": hexed(hashes), "heads": "1-2", "layers": "0-3"}))
        runs = SPACE.layout.head_slices(range(4), range(1, 3)).in_file().runs()
        assert payload == b"".join([body[run.start : run.stop] for run in runs])


@pytest.mark.parametrize("elsewhere", [{"bucket": "none"}, {"space": "00" * 32}, {}])
@pytest.mark.parametrize("sliced", [{}, {"layers": "0"}])
async def test_read_of_what_is_not_the_tenants_is_a_miss(open_api, elsewhere, sliced) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(1)
        tenant = "alpha" if elsewhere else "beta"
        got = await frames(await read(opened, {"hashes": hexed(hashes)} | elsewhere | sliced, tenant))
        assert got == [(Frame(0, Status.MISSING), b"")]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hashes": ["00" * 32] * 9}, "hashes: at most 8"),
        ({"layers": "4"}, "layers: the range 4 is not within 0-3"),
        ({"layers": "2-1"}, "layers: the range 2-1"),
        ({"layers": "x"}, "layers: expected a range"),
        ({"layers": 3}, "layers: expected text"),
        ({"heads": "0-8"}, "heads: the range 0-8 is not within 0-7"),
        ({"deadline_ms": -1}, "deadline_ms: expected milliseconds"),
        ({"deadline_ms": True}, "deadline_ms: expected milliseconds"),
        ({"head": "0"}, "did you mean 'heads'?"),
    ],
)
async def test_read_names_the_field_that_is_wrong(open_api, change, named) -> None:
    async with open_api(max_read=8) as opened:
        await opened.put_chunks(1)
        response = await read(opened, {"hashes": ["00" * 32]} | change)
        answer = json.loads(response.body)
        assert (response.status, answer["code"]) == (400, "InvalidArgument")
        assert named in answer["message"]


async def test_read_after_its_deadline_is_late(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(2)
        got = await frames(await read(opened, {"hashes": hexed(hashes), "deadline_ms": 0}))
        assert [frame.status for frame, _ in got] == [Status.LATE] * 2


# --- reserve and slice ------------------------------------------------------------------------------------------------


def reservation(opened: Any, **more: Any) -> tuple[dict[str, Any], bytes]:
    """What reserves the first chunk of a prompt, and its body."""
    ((chunk_hash, body),) = chunks(opened.tenants["alpha"].salt, 1)
    parent = ChunkHeader.from_metadata(decode_header(body, len(body)).metadata).parent
    members = {"bucket": "bucket", "space": SPACE.id, "hash": chunk_hash.hex(), "parent": parent, "first_token": 0}
    return members | more, body


async def put(opened: Any, name: str, body: bytes, query: str = "", **options: Any) -> tuple[int, dict[str, Any]]:
    response = await opened.request("PUT", SLICE, body, query=f"reservation={name}{query}", **options)
    return response.status, json.loads(response.body)


async def test_writers_share_a_reservation_by_a_printable_text(open_api, document) -> None:  # noqa: F811
    async with open_api() as opened:
        await opened.put_chunks(0)
        members, _ = reservation(opened)
        for writer in ("w", "é" * 128):
            got = [(await opened.ask(RESERVE, members | {"writer": writer}))[1] for _ in range(2)]
            assert got[0]["reservation"] == got[1]["reservation"]
            _check(document, RESERVE, "post", "200", got[1])
        for bad in ("", "x" * 129, "a\n", "a\x00", 7, ["w"], "\u200b"):
            status, answer = await opened.ask(RESERVE, members | {"writer": bad})
            assert (status, answer["code"]) == (400, "InvalidArgument")
            assert "printable" in answer["message"]
        status, answer = await opened.ask(RESERVE, members | {"writer": "w", "parent": "ab" * 32})
        assert (status, answer["code"]) == (409, "SliceConflict")
        request = jsonschema.Draft202012Validator(
            {"components": document["components"], "$ref": "#/components/schemas/ReserveRequest"}
        )
        assert request.is_valid(members | {"writer": "w"})
        assert not request.is_valid(members | {"writer": ""})


async def test_chunk_comes_in_slices(open_api, document) -> None:  # noqa: F811
    async with open_api() as opened:
        await opened.put_chunks(0)
        members, body = reservation(opened)
        status, reserved = await opened.ask(RESERVE, members)
        assert (status, reserved["nbytes"], reserved["expires_s"]) == (200, SPACE.layout.nbytes, 30)
        _check(document, RESERVE, "post", "200", reserved)
        name, kv = reserved["reservation"], body[DATA_START:]
        quarter = len(kv) // 4
        for index, payload_hash in enumerate(["UNSIGNED-PAYLOAD", None, "UNSIGNED-PAYLOAD", None]):
            part = kv[index * quarter : (index + 1) * quarter]
            checksum = {"x-amz-checksum-crc64nvme": b64encode(crc64nvme(part).to_bytes(8, "big")).decode()}
            query = f"&layers={index}"
            status, written = await put(opened, name, part, query, payload_hash=payload_hash, headers=checksum)
            assert (status, written["missing_nbytes"]) == (200, (3 - index) * quarter)
            assert written["state"] == ("open" if index < 3 else "committed")
            _check(document, SLICE, "put", "200", written)
        got = await frames(await read(opened, {"hashes": [members["hash"]]}))
        assert got[0][1] == body
        status, again = await opened.ask(RESERVE, members)
        assert (status, again["reservation"]) == (200, None)
        _check(document, RESERVE, "post", "200", again)
        assert (await put(opened, name, kv))[0] == 404


async def test_reservation_is_aborted(open_api, document) -> None:  # noqa: F811
    async with open_api() as opened:
        await opened.put_chunks(0)
        members, body = reservation(opened)
        name = (await opened.ask(RESERVE, members))[1]["reservation"]
        for tenant, expected in (("beta", 404), ("alpha", 200), ("alpha", 404)):
            response = await opened.request("DELETE", RESERVE, query=f"reservation={name}", tenant=tenant)
            assert response.status == expected
            _check(document, RESERVE, "delete", "200" if expected == 200 else "default", json.loads(response.body))
        status, answer = await put(opened, name, body[DATA_START:])
        assert (status, answer["code"]) == (404, "NoSuchReservation")


async def test_slice_that_is_wrong_is_refused_and_may_come_again(open_api) -> None:
    async with open_api() as opened:
        await opened.put_chunks(0)
        members, body = reservation(opened)
        name, kv = (await opened.ask(RESERVE, members))[1]["reservation"], body[DATA_START:]
        wrong_crc = {"headers": {"x-amz-checksum-crc64nvme": b64encode(bytes(8)).decode()}}
        no_crc = {"headers": {"x-amz-checksum-crc64nvme": "x"}}
        for part, query, options, status, code in [
            (kv, "", wrong_crc, 400, "BadDigest"),
            (kv, "", no_crc, 400, "InvalidArgument"),
            (kv, "", {"payload_hash": hashlib.sha256(b"other").hexdigest()}, 400, "XAmzContentSHA256Mismatch"),
            (kv, "", {"payload_hash": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, 501, "NotImplemented"),
            (kv[:-1], "", {"announced": len(kv)}, 400, "IncompleteBody"),
            (kv[:-1], "", {}, 400, "InvalidRequest"),
            (kv, "&layers=0", {}, 400, "InvalidRequest"),
            (kv, "&layers=4", {}, 400, "InvalidArgument"),
            (kv, "&layer=0", {}, 400, "InvalidArgument"),
            (kv, "&layers=0&layers=0", {}, 400, "InvalidRequest"),
            (kv, "", {"tenant": "beta"}, 404, "NoSuchReservation"),
            (kv, "x", {}, 404, "NoSuchReservation"),
        ]:
            got, answer = await put(opened, name, part, query, **options)
            assert (got, answer["code"]) == (status, code), answer
        assert await put(opened, name, kv[: len(kv) // 2], "&layers=0-1") == (
            200,
            {"state": "open", "missing_nbytes": len(kv) // 2},
        )
        status, answer = await put(opened, name, kv, "")
        assert (status, answer["code"]) == (409, "SliceConflict")
        assert (await put(opened, name, kv[len(kv) // 2 :], "&layers=2-3"))[1]["state"] == "committed"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"first_token": 1}, 400, "InvalidChunk"),
        ({"first_token": -16}, 400, "InvalidArgument"),
        ({"first_token": 10**18}, 400, "InvalidArgument"),
        ({"parent": "x"}, 400, "InvalidArgument"),
        ({"hash": None}, 400, "InvalidArgument"),
        ({"space": "00" * 32}, 400, "UnknownSpace"),
        ({"bucket": "none"}, 404, "NoSuchBucket"),
        ({"lease_s": 0}, 400, "InvalidArgument"),
    ],
)
async def test_reservation_that_is_wrong_is_refused(open_api, change, status, code) -> None:
    async with open_api() as opened:
        await opened.put_chunks(0)
        got, answer = await opened.ask(RESERVE, reservation(opened, **change)[0])
        assert (got, answer["code"]) == (status, code)


async def test_lease_end_drops_what_has_come(open_api) -> None:
    async with open_api(store=StoreConfig(max_lease=0.1)) as opened:
        await opened.put_chunks(0)
        used = opened.store.stats(opened.tenants["alpha"]).nbytes
        members, body = reservation(opened, lease_s=100)
        reserved = (await opened.ask(RESERVE, members))[1]
        assert reserved["expires_s"] == 0.1
        assert opened.store.stats(opened.tenants["alpha"]).nbytes == used + len(body)
        await asyncio.sleep(0.15)
        assert (await put(opened, reserved["reservation"], body[DATA_START:]))[0] == 404
        await asyncio.sleep(0)
        assert opened.store.stats(opened.tenants["alpha"]).nbytes == used
