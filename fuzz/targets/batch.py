"""Chunks in slices as signed calls, and the frames that a client reads."""

from __future__ import annotations

import json

from fuzz.draw import Draw, spliced
from fuzz.properties import must
from fuzz.service import Body, Service, sha256
from fuzz.targets.base import Target
from fuzz.targets.formats import SPACE
from kvgate.chunk.frame import FRAME_NBYTES, Frame, Status, decode_frame
from kvgate.client.frames import FrameReader
from kvgate.errors import GatewayError, InvalidFrame
from kvgate.messages import Request

_RANGES = ("", "0", "0-1", "1", "0-0", "1-0", "-1", "9", "0-9", "999999999-0", "x", "0-")
_WORDS = ("-", "0", "9" * 12, "%30", "&", "=", "\u0660", " ", "layers=0", "heads=0")
_LAYOUT = SPACE.layout

_service = Service(with_disk=False)


# --- slices: the chunk is what its slices were, and nothing is left of one that is not complete -----------------------


def check_slices(data: bytes) -> None:
    _service.run(_slices(Draw(data)))


async def _slices(draw: Draw) -> None:
    manifest = f"/bucket/kv/{SPACE.id}/manifest.json"
    await _answer("PUT", manifest, SPACE.canonical_json(), s3=True)
    members = {"bucket": "bucket", "space": SPACE.id, "hash": "ab" * 32, "parent": "cd" * 32, "first_token": 0}
    _, content = await _answer("POST", "/_kv/v1/reserve", json.dumps(members).encode())
    name = json.loads(content)["reservation"]
    state = "open"
    for _ in range(1 + draw.below(6)):
        state = await _slice(draw, name) or state
    if state == "open":
        status, _ = await _answer("DELETE", "/_kv/v1/reserve", b"", f"reservation={name}")
        must(status == 200, f"a reservation is gone before it is complete: {status}")
    status, body = await _answer("GET", f"/bucket/kv/{SPACE.id}/{members['hash']}", b"", s3=True)
    must((status == 200) == (state == "committed"), f"a chunk whose state is {state} is answered {status}")
    if status == 200:
        must(body[4096:] == b"\x01" * _LAYOUT.nbytes, "the chunk is not what its slices were")


async def _slice(draw: Draw, name: str) -> str:
    """Send one slice, a good one or not; the state of the chunk, empty when it was refused."""
    layers, heads = (draw.pick(_RANGES) for _ in range(2))
    query = "&".join(
        [f"reservation={name}", *[f"{of}={text}" for of, text in (("layers", layers), ("heads", heads)) if text]]
    )
    if draw.one_in(6):
        query = spliced(draw, query, _WORDS)
    parts = [_count(text, limit) for text, limit in ((layers, _LAYOUT.layers), (heads, _LAYOUT.kv_heads))]
    nbytes = parts[0] * parts[1] * (_LAYOUT.nbytes // (_LAYOUT.layers * _LAYOUT.kv_heads))
    nbytes = max(0, nbytes + draw.pick((0, 0, 0, 0, 1, -1)))
    missing = draw.pick((0, 0, 0, 0, 1, nbytes))
    status, content = await _answer("PUT", "/_kv/v1/slice", b"\x01" * nbytes, query, missing=min(missing, nbytes))
    return str(json.loads(content)["state"]) if status == 200 else ""


def _count(text: str, limit: int) -> int:
    first, _, last = text.partition("-")
    if not text:
        return limit
    if not (first.isdecimal() and (last or first).isdecimal()):
        return 1
    return min(max(int(last or first) - int(first) + 1, 0), limit + 1)


async def _answer(
    method: str, path: str, body: bytes, query: str = "", *, missing: int = 0, s3: bool = False
) -> tuple[int, bytes]:
    headers = {"content-length": str(len(body))}
    sent = Body(body[: len(body) - missing], len(body), 1 << 12)
    request: Request = _service.request("alpha", method, path, query, headers, sent, sha256(body))
    response, content = await _service.answer(_service.s3 if s3 else _service.kvapi, request)
    return response.status, content


# --- frames: any bytes, however they arrive, are chunks or an error ---------------------------------------------------


def check_frames(data: bytes) -> None:
    draw = Draw(data)
    count, stream = draw.below(4), b""
    for index in range(draw.below(5)):
        payload = draw.some(40)
        frame = Frame(draw.pick((index, index, index, 0, 1 << 31)), draw.pick(tuple(Status)), len(payload), 0)
        if frame.status != Status.PRESENT:
            frame = Frame(frame.index, frame.status)
        header = frame.encode()
        if draw.one_in(4):
            at = draw.below(FRAME_NBYTES)
            header = header[:at] + draw.take(1).ljust(1, b"\0") + header[at + 1 :]
        stream += header + (payload if frame.status == Status.PRESENT else b"")
    stream += draw.some(40)
    buffers = [memoryview(bytearray(draw.below(40))) for _ in range(count)] if draw.one_in(2) else None
    seen: list[int] = []
    reader = FrameReader(count, buffers, lambda index, _: seen.append(index))
    try:
        while stream:
            nbytes = 1 + draw.below(50)
            reader.feed(stream[:nbytes])
            stream = stream[nbytes:]
        reader.finish()
    except GatewayError:
        pass
    must(seen == list(range(len(reader.chunks))) and len(seen) <= count, f"chunks came as {seen} of {count}")


def check_header(data: bytes) -> None:
    try:
        frame = decode_frame(data)
    except InvalidFrame:
        return
    must(frame.encode() == data, "a header says something else than its bytes")


TARGETS = (
    Target("slices", 20_000, check_slices, close=_service.close),
    Target("frames", 40_000, check_frames),
    Target(
        "frame-header", 20_000, check_header, (Frame(1, Status.PRESENT, 5, 6).encode(), Frame(2, Status.LATE).encode())
    ),
)
