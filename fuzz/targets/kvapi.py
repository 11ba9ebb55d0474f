"""Whole calls under /_kv/v1/: correctly signed, with any body in either encoding."""

from __future__ import annotations

import json
from typing import Any

import msgpack

from fuzz.draw import Draw, spliced
from fuzz.properties import must
from fuzz.service import Body, Service, sha256
from fuzz.targets.base import Target
from fuzz.targets.formats import SPACE
from kvgate.kvapi.read import FRAMES
from kvgate.messages import Request

_PATHS = (
    *("/_kv/v1/match", "/_kv/v1/release", "/_kv/v1/stats", "/_kv/v1/tenant", "/_kv/v1/openapi.yaml", "/_kv/v1/none"),
    *("/_kv/v1/read", "/_kv/v1/reserve"),
)
_TYPES = ("application/json", "application/msgpack", "application/x-msgpack; a=b", "text/plain", "")
_ACCEPTS = ("", "application/json", "application/msgpack;q=0.5, application/json;q=nan", "*/*", "application/msgpack")
_ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e300, "", "x", b"", b"\xff" * 32, "ab" * 32, [], [None], {}, {"a": []}, 1 << 63, [[]]),
)
_WORDS = ("{", "}", "[", "]", '"', ",", ":", "null", "NaN", "1e999", "\udc80", "\\ud800", "a", "9" * 5000, "&", "=")

_service = Service(with_disk=False)


def check(data: bytes) -> None:
    _service.run(_calls(Draw(data)))


async def _calls(draw: Draw) -> None:
    leases: list[str] = []
    await _store_manifest()
    for _ in range(1 + draw.below(3)):
        await _call(draw, leases)
    for lease in leases:
        request = _request("POST", "/_kv/v1/release", json.dumps({"lease": lease}).encode(), {})
        response, _ = await _service.answer(_service.kvapi, request)
        must(response.status in (200, 404), "a lease that cannot be released")


async def _store_manifest() -> None:
    for key, body in ((f"/bucket/kv/{SPACE.id}/manifest.json", SPACE.canonical_json()),):
        response, _ = await _service.answer(_service.s3, _request("PUT", key, body, {}))
        must(response.status == 200, "the manifest is refused")


async def _call(draw: Draw, leases: list[str]) -> None:
    members: dict[Any, Any] = {"bucket": "bucket", "space": SPACE.id, "hashes": ["ab" * 32], "lease_s": 1}
    path = draw.pick(_PATHS)
    if path.endswith("release"):
        members = {"lease": leases[0] if leases else "x"}
    elif path.endswith("read"):
        members = {**members, "layers": "0", "heads": "0-1", "deadline_ms": 50}
        del members["lease_s"]
    elif path.endswith("reserve"):
        members = {"bucket": "bucket", "space": SPACE.id, "hash": "ab" * 32, "parent": "cd" * 32, "first_token": 0}
        members |= {"writer": "engine"} if draw.one_in(2) else {}
    elif not path.endswith("match"):
        members = {}
    for _ in range(draw.below(3)):
        name = draw.pick((*members, "odd", draw.some(6).decode("utf-8", "replace")))
        members[name] = draw.pick(_ODD)
    kind = draw.pick(_TYPES)
    body = b""
    if "json" in kind or not kind:
        body = json.dumps(members, default=bytes.hex).encode() if members else b""
    elif members:
        body = msgpack.packb(members)
    for _ in range(draw.below(3)):
        at = draw.below(len(body) + 1)
        body = body[:at] + draw.some(6) + body[at + draw.pick((0, 1, 2, 100)) :]
    headers = {name: value for name, value in (("content-type", kind), ("accept", draw.pick(_ACCEPTS))) if value}
    if draw.one_in(4):
        headers["accept"] = draw.header_value(20)
    if draw.one_in(8):
        headers["content-type"] = spliced(draw, kind, _WORDS)
    method = draw.pick(("GET", "HEAD", "PUT")) if draw.one_in(6) else "POST" if body else "GET"
    query = spliced(draw, "", _WORDS) if draw.one_in(8) else ""
    path = spliced(draw, path, _WORDS) if draw.one_in(16) else path
    nbytes = max(0, len(body) + draw.pick((0, 0, 0, 0, 0, 1, -1, 1 << 20)))
    response, content = await _service.answer(_service.kvapi, _request(method, path, body, headers, query, nbytes))
    if not content or path == _PATHS[4] or response.headers["Content-Type"] == FRAMES:
        return
    unpack = json.loads if response.headers["Content-Type"] == "application/json" else msgpack.unpackb
    answer = unpack(content)
    must(
        type(answer) is dict and (response.status == 200 or {*answer} == {"code", "message"}), f"an odd answer {answer}"
    )
    if answer.get("lease"):
        leases.append(answer["lease"])
    if name := answer.get("reservation"):
        response, _ = await _service.answer(
            _service.kvapi, _request("DELETE", "/_kv/v1/reserve", b"", {}, f"reservation={name}")
        )
        must(response.status == 200, "a reservation that cannot be aborted")


def _request(
    method: str, path: str, body: bytes, headers: dict[str, str], query: str = "", nbytes: int | None = None
) -> Request:
    length = len(body) if nbytes is None else nbytes
    headers = {"content-length": str(length), **headers}
    return _service.request("alpha", method, path, query, headers, Body(body, length, 1 << 20), sha256(body))


TARGETS = (Target("kvapi", 30_000, check, close=_service.close),)
