"""`retain` and `retention`, as signed requests to the API over a real store."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from kvgate.chunk.key import ChunkKey
from kvgate.store.config import StoreConfig
from kvgate.store.retention import Pin, RetentionConfig
from tests.client.chunks import SPACE

RETAIN, RETENTION = "/_kv/v1/retain", "/_kv/v1/retention"
DOCUMENT = yaml.safe_load(resources.files("kvgate.kvapi").joinpath("openapi.yaml").read_bytes())


async def retain(opened: Any, tenant: str = "alpha", *, packed: bool = False, **members: Any) -> Any:
    status, answer = await opened.ask(RETAIN, {"bucket": "bucket", **members}, tenant=tenant, packed=packed)
    _check("Retained" if status == 200 else "Error", answer)
    return answer["states"] if status == 200 and answer["rule"] is None else (status, answer)


async def retention(opened: Any, tenant: str = "alpha") -> Any:
    status, answer = await opened.ask(RETENTION, tenant=tenant)
    assert status == 200
    _check("Retention", answer)
    return answer


def pin(opened: Any, chunk_hash: bytes, tenant: str = "alpha") -> Pin:
    return opened.store._index.get(tenant, "bucket", str(ChunkKey(SPACE.id, chunk_hash.hex()))).pin


async def test_chunks_are_pinned_by_their_hashes_and_unpinned(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(2)
        asked = {"space": SPACE.id, "hashes": [each.hex() for each in (*hashes, bytes(32))]}
        assert await retain(opened, **asked, pin="hard", pin_s=60) == ["done", "done", "missing"]
        assert [pin(opened, each) for each in hashes] == [Pin.HARD] * 2
        numbers = await retention(opened)
        assert (numbers["pinned_objects"], numbers["marks"], numbers["rules"]) == (2, 2, [])
        assert numbers["pinned_nbytes"] == 2 * (4096 + SPACE.layout.nbytes)
        packed = {"space": SPACE.id, "hashes": b"".join(hashes)}
        assert await retain(opened, packed=True, **packed, pin="none") == ["done", "done"]
        assert [pin(opened, each) for each in hashes] == [Pin.NONE] * 2


async def test_a_prefix_has_a_rule_for_what_is_there_and_what_comes(open_api) -> None:
    async with open_api() as opened:
        (first,) = await opened.put_chunks(1)
        status, answer = await retain(opened, prefix="kv/", pin="soft", ttl_s=3600)
        assert status == 200
        assert answer["rule"] == {
            "bucket": "bucket",
            "prefix": "kv/",
            "pin": "soft",
            "pin_expires_s": None,
            "ttl_s": 3600,
        }
        async with asyncio.timeout(10):
            while pin(opened, first) is not Pin.SOFT:
                await asyncio.sleep(0.01)
        (second,) = await opened.put_chunks(1, seed=1)
        assert pin(opened, second) is Pin.SOFT
        assert (await retention(opened))["rules"] == [answer["rule"]]
        _, answer = await retain(opened, prefix="kv/", pin="none", ttl_s=0)
        assert answer["rule"]["ttl_s"] is None
        assert (await retention(opened))["rules"] == []


async def test_an_end_makes_a_chunk_a_miss_at_once(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(3)
        key = str(ChunkKey(SPACE.id, hashes[1].hex()))
        assert await retain(opened, keys=[key], ttl_s=0.05) == ["done"]
        await asyncio.sleep(0.1)
        asked = {"bucket": "bucket", "space": SPACE.id, "hashes": [each.hex() for each in hashes]}
        assert (await opened.ask("/_kv/v1/match", asked))[1]["matched"] == 1
        explained = (await opened.ask("/_kv/v1/explain", asked))[1]["objects"]
        assert [each["status"] for each in explained] == ["present", "expired", "present"]


async def test_hard_pins_that_do_not_fit_are_refused_by_name(open_api) -> None:
    async with open_api(store=StoreConfig(retention=RetentionConfig(pinned_share=0))) as opened:
        hashes = [each.hex() for each in await opened.put_chunks(1)]
        assert await retain(opened, space=SPACE.id, hashes=hashes, pin="hard") == ["refused"]
        assert await retain(opened, space=SPACE.id, hashes=hashes, pin="soft") == ["done"]
        assert (await retention(opened))["pinned_limit_nbytes"] == 0


async def test_no_tenant_reaches_or_learns_of_another(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(1, tenant="alpha")
        asked = {"space": SPACE.id, "hashes": [each.hex() for each in hashes]}
        assert await retain(opened, "beta", **asked, pin="hard") == ["missing"]
        assert (await retain(opened, "alpha", prefix="", pin="hard"))[0] == 200
        numbers = await retention(opened, "beta")
        assert (numbers["pinned_objects"], numbers["marks"], numbers["rules"]) == (0, 0, [])
        assert (await retain(opened, "beta", bucket="alpha_bucket", keys=["k"], pin="hard"))[0] == 404


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"pin": "hard"}, "one of hashes"),
        ({"keys": ["k"], "prefix": "", "pin": "hard"}, "keys and prefix"),
        ({"keys": ["k"]}, "pin or ttl_s"),
        ({"keys": ["k"], "pin": "firm"}, "pin: expected none or hard or soft"),
        ({"keys": ["k"], "pin": ["hard"]}, "pin: expected"),
        ({"keys": ["k"], "pin": "none", "pin_s": 3}, "pin_s: needs"),
        ({"keys": ["k"], "ttl_s": 3, "pin_s": 3}, "pin_s: needs"),
        ({"keys": ["k"], "ttl_s": -1}, "ttl_s: expected seconds"),
        ({"keys": ["k"], "ttl_s": True}, "ttl_s: expected seconds"),
        ({"keys": ["k"], "ttl_s": 10**10}, "ttl_s: expected"),
        ({"keys": ["k"], "space": "0" * 64, "ttl_s": 3}, "space: goes together"),
        ({"hashes": ["0" * 64], "ttl_s": 3}, "space: this field needs"),
        ({"keys": [""], "ttl_s": 3}, "keys[0]"),
        ({"prefix": 3, "ttl_s": 3}, "prefix: expected text"),
        ({"keys": ["k"], "ttl": 3}, "did you mean 'ttl_s'"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(open_api, members: dict[str, Any], named: str) -> None:
    async with open_api() as opened:
        status, answer = await retain(opened, **members)
        assert (status, answer["code"]) == (400, "InvalidArgument")
        assert named in answer["message"]


def _check(name: str, value: Any) -> None:
    schema = {"components": DOCUMENT["components"], "$ref": f"#/components/schemas/{name}"}
    jsonschema.Draft202012Validator(schema).validate(value)
