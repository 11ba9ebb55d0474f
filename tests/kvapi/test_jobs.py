"""`jobs` and `prefetch`, as signed requests to the API over a real store."""

from __future__ import annotations

import asyncio
import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from kvgate.kvapi.routes import ROUTES
from kvgate.store.config import StoreConfig
from kvgate.store.job_kinds import KINDS
from kvgate.store.jobs import JobsConfig
from tests.client.chunks import SPACE

JOBS, PREFETCH = "/_kv/v1/jobs", "/_kv/v1/prefetch"
DOCUMENT = yaml.safe_load(resources.files("kvgate.kvapi").joinpath("openapi.yaml").read_bytes())


async def begin(opened: Any, kind: str, tenant: str = "alpha", *, packed: bool = False, **members: Any) -> Any:
    asked = {"bucket": "bucket", "kind": kind, **members}
    status, answer = await opened.ask(JOBS, asked, tenant=tenant, packed=packed)
    if status != 200:
        return status, answer
    check("Jobs", answer)
    return answer["jobs"][0]


async def end_of(opened: Any, job: Any, tenant: str = "alpha") -> Any:
    async with asyncio.timeout(20):
        while job["ended_ms"] is None:
            (job,) = (await call(opened, "GET", f"id={job['id']}", tenant))[1]["jobs"]
            await asyncio.sleep(0.005)
    return job


async def call(opened: Any, method: str, query: str = "", tenant: str = "alpha") -> tuple[int, Any]:
    response = await opened.request(method, JOBS, query=query, tenant=tenant)
    answer = json.loads(response.body)
    check("Jobs" if response.status == 200 else "Error", answer)
    return response.status, answer


def check(name: str, value: Any) -> None:
    schema = {"components": DOCUMENT["components"], "$ref": f"#/components/schemas/{name}"}
    jsonschema.Draft202012Validator(schema).validate(value)


async def test_a_job_is_begun_watched_and_remembered(open_api) -> None:
    async with open_api() as opened:
        hashes = [each.hex() for each in await opened.put_chunks(3)]
        begun = await begin(opened, "pin", space=SPACE.id, hashes=[*hashes, "0" * 64], pin="soft", pin_s=60)
        assert (begun["selected"], begun["prefix"], begun["options"]) == (4, None, {"pin": "soft", "pin_s": 60})
        job = await end_of(opened, begun)
        assert (job["state"], job["selected"]) == ("incomplete", 4)
        assert job["objects"] == {"total": 4, "done": 3, "skipped": 0, "failed": 1, "unmet": 1}
        assert job["nbytes"]["done"] == job["nbytes"]["total"] > 0
        assert job["reasons"] == [{"reason": "there is no such object", "objects": 1}]
        assert job["examples"] == [{"key": f"kv/{SPACE.id}/{'0' * 64}", "why": "there is no such object"}]
        second = await end_of(opened, await begin(opened, "unpin", packed=True, prefix=""))
        assert (second["state"], second["prefix"], second["objects"]["total"]) == ("done", "", 4)
        assert [each["id"] for each in (await call(opened, "GET"))[1]["jobs"]] == [second["id"], job["id"]]


async def test_clear_deletes_what_is_named(open_api) -> None:
    async with open_api() as opened:
        hashes = [each.hex() for each in await opened.put_chunks(3)]
        job = await end_of(opened, await begin(opened, "clear", space=SPACE.id, hashes=hashes[1:]))
        assert (job["state"], job["objects"]["done"]) == ("done", 2)
        asked = {"bucket": "bucket", "space": SPACE.id, "hashes": hashes}
        assert (await opened.ask("/_kv/v1/match", asked))[1]["matched"] == 1


async def test_a_job_that_waits_is_cancelled(open_api) -> None:
    async with open_api(store=StoreConfig(jobs=JobsConfig(running=1, active=2))) as opened:
        await opened.put_chunks(3)
        first = await begin(opened, "prefetch", prefix="")
        second = await begin(opened, "prefetch", prefix="")
        assert second["state"] == "waiting"
        assert (await begin(opened, "prefetch", prefix=""))[1]["code"] == "SlowDown"
        (cancelled,) = (await call(opened, "DELETE", f"id={second['id']}"))[1]["jobs"]
        assert (cancelled["state"], cancelled["started_ms"]) == ("cancelled", None)
        assert (await end_of(opened, first))["state"] == "done"


async def test_another_tenants_job_is_like_none(open_api) -> None:
    async with open_api() as opened:
        job = await end_of(opened, await begin(opened, "prefetch", prefix=""))
        for method in ("GET", "DELETE"):
            theirs = await call(opened, method, f"id={job['id']}", "beta")
            assert theirs == await call(opened, method, "id=none", "beta")
            assert (theirs[0], theirs[1]["code"]) == (404, "NoSuchJob")
        assert (await call(opened, "GET", tenant="beta"))[1] == {"jobs": []}
        assert (await begin(opened, "clear", "beta", bucket="alpha_bucket", prefix=""))[0] == 404


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"kind": "defrag", "prefix": ""}, "kind: expected"),
        ({"kind": "copy", "prefix": ""}, "tier: a job"),
        ({"kind": "copy", "prefix": "", "tier": "tape"}, "no tier 'tape'"),
        ({"kind": "pin", "prefix": "", "tier": "host"}, "tier: not for"),
        ({"kind": "pin"}, "one of hashes"),
        ({"kind": "pin", "prefix": "", "pin": "none"}, "pin: expected hard or soft"),
        ({"kind": "pin", "prefix": "", "pin_s": -1}, "pin_s: expected"),
        ({"prefix": ""}, "kind: this field needs"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(open_api, members: dict[str, Any], named: str) -> None:
    async with open_api() as opened:
        status, answer = await opened.ask(JOBS, {"bucket": "bucket", **members})
        assert (status, answer["code"]) == (400, "InvalidArgument")
        assert named in answer["message"]
        assert (await call(opened, "GET"))[1] == {"jobs": []}


async def test_prefetch_says_where_chunks_lie(open_api) -> None:
    async with open_api() as opened:
        hashes = [each.hex() for each in await opened.put_chunks(2)]
        asked = {"bucket": "bucket", "space": SPACE.id, "hashes": [hashes[0], "0" * 64, hashes[1]]}
        for bucket, ranks in (("bucket", [0, -1, 0]), ("none", [-1, -1, -1])):
            status, answer = await opened.ask(PREFETCH, asked | {"bucket": bucket})
            assert (status, answer) == (200, {"tiers": ["host"], "ranks": ranks, "wanted": 0})
            check("Prefetched", answer)
        assert (await opened.ask(PREFETCH, asked, tenant="beta"))[1]["ranks"] == [-1, -1, -1]


def test_the_document_names_every_kind() -> None:
    assert DOCUMENT["components"]["schemas"]["JobRequest"]["properties"]["kind"]["enum"] == [*KINDS]
    assert ("POST", JOBS) in ROUTES


async def test_compress_takes_a_codec_and_needs_a_tier_that_compresses(open_api) -> None:
    async with open_api() as opened:
        assert (await begin(opened, "compress", prefix="", codec="rle"))[1]["message"].startswith("codec: expected lz4")
        status, answer = await begin(opened, "compress", prefix="", codec="zstd")
        assert (status, answer["code"]) == (400, "InvalidArgument")
        assert "a disk tier does" in answer["message"]
        assert "codec: not for" in (await begin(opened, "decompress", prefix="", codec="zstd"))[1]["message"]
