"""Whole S3 requests: correctly signed, and otherwise hostile.

An input is a few requests, to an empty store or not. Each begins as a good one, and then gets other parameters,
headers, bytes or an early end.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote

from fuzz.draw import Draw, spliced
from fuzz.service import Body, Service, sha256
from fuzz.targets.base import Target
from fuzz.targets.formats import SPACE
from kvgate.auth.sigv4 import UNSIGNED_PAYLOAD
from kvgate.chunk.header import ChunkHeader

_CHUNK_HASH = "ab" * 32
_CHUNK = ChunkHeader.encode(SPACE, bytes.fromhex(_CHUNK_HASH), bytes(32), 0) + bytes(SPACE.layout.nbytes)
_MANIFEST_KEY, _CHUNK_KEY = f"kv/{SPACE.id}/manifest.json", f"kv/{SPACE.id}/{_CHUNK_HASH}"
_UPLOAD_ID = re.compile(rb"<UploadId>([^<]+)</UploadId>")

_KEYS = (
    *("k", "k/1", "é", "a b+c&<>'\"", "k//", "\x01", "\ufffe", "kv/x", _MANIFEST_KEY, _CHUNK_KEY),
    *("x" * 1024, "x" * 1025),
)
_BUCKETS = (
    *("bucket", "bucket", "alpha_bucket", "beta_other", "other", "made", "none", "_uploads", "BUCKET", ""),
    *("xn--a", "1.2.3.4"),
)
_PARAMETERS = (
    *("list-type", "prefix", "delimiter", "max-keys", "encoding-type", "marker", "start-after", "continuation-token"),
    *("fetch-owner", "uploads", "uploadId", "partNumber", "max-parts", "part-number-marker", "max-uploads", "delete"),
    *("key-marker", "upload-id-marker", "location", "response-content-type", "response-expires", "x-id"),
    *("max-buckets", "versionId", "acl", "policy", "tagging", "cors", "lifecycle", "layers", "heads"),
    *("X-Amz-Date", "attributes"),
)
_VALUES = ("", "2", "0", "1", "10000", "99999", "k", "/", "url", "true", "é", "\x01", "MTprLzE", "-1", "%", "&")
_HEADERS = (
    *("x-amz-copy-source", "x-amz-copy-source-range", "x-amz-copy-source-if-match", "x-amz-metadata-directive"),
    *("x-amz-tagging-directive", "x-amz-object-attributes", "x-amz-max-parts", "x-amz-part-number-marker"),
    *("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "content-type"),
    *("x-amz-checksum-mode", "x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-checksum-crc32"),
    *("content-md5", "x-amz-decoded-content-length", "x-amz-trailer", "x-amz-copy-source", "x-amz-mp-object-size"),
    *("content-encoding", "x-amz-acl", "x-amz-expected-bucket-owner", "x-amz-meta-a", "expires", "cache-control"),
    *("x-amz-storage-class", "origin", "access-control-request-method", "access-control-request-headers"),
    *("x-amz-tagging", "host", "x-amz-sdk-checksum-algorithm", "x-amz-checksum-crc64nvme", "expect"),
    *("x-amz-tagging", "transfer-encoding"),
)
_HEADER_VALUES = (
    *("REPLACE", "COPY", "bytes=0-1", "ETag,ObjectParts,ObjectSize,Checksum", "/bucket/k?versionId=x"),
    *("bytes=0-0", "bytes=-1", "bytes=1-", "*", '"a"', "Fri, 02 Jan 2026 10:00:00 GMT", "ENABLED", "CRC32", "SHA256"),
    *("FULL_OBJECT", "COMPOSITE", "AAAAAA==", "0", "5", "alpha", "private", "STANDARD", "gzip", "aws-chunked", "é"),
    *("x-amz-checksum-crc32", "chunked", "", "100-continue", "/bucket/k", "a=b", "x" * 3000, "application/xml"),
    *("http://x.a", "http://x\udcff", "GET", "x-a, \udcff", "public-read", "a=b&c=%ff"),
)
_SOURCES = ("/bucket/k", "bucket/%C3%A9", "alpha_other/k", "/bucket/k?versionId=null", "_uploads/x", "bucket/k?a", "%")
_CALLERS = ("alpha",) * 6 + ("beta", "")
_PAYLOAD_HASHES = (
    *(UNSIGNED_PAYLOAD, "0" * 64, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
)
_ASKED_METHOD, _ASKED_HEADERS = "access-control-request-method", "access-control-request-headers"
_CORS = (
    b"<CORSConfiguration><CORSRule><AllowedOrigin>http://*</AllowedOrigin><AllowedMethod>GET</AllowedMethod>"
    b"<AllowedHeader>*</AllowedHeader></CORSRule></CORSConfiguration>"
)
_LIFECYCLE = (
    b"<LifecycleConfiguration><Rule><Prefix>k</Prefix><Status>Enabled</Status><Expiration><Days>2147483647</Days>"
    b"</Expiration></Rule></LifecycleConfiguration>"
)
_POLICY = (
    b'{"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": '
    b'"arn:aws:s3:::bucket/*", "Condition": {"StringLike": {"s3:ExistingObjectTag/a": "b*?c"}}}]}'
)
_WORDS = ("/", "//", "%2F", "%00", "%", "..", ".", "&", "=", "é", "\udcff", "?", "#", " ", "+", "\\", "a" * 2000)


class Sent(NamedTuple):
    """A request before it is signed. The body is sent up to `nbytes`."""

    method: str
    bucket: str
    key: str
    parameters: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    payload_hash: str = ""


class _Memory:
    """What later requests of an input can refer to."""

    def __init__(self) -> None:
        self.upload_id, self.etags = "none", ["e", "e"]


_service = Service(with_disk=True)


def check(data: bytes) -> None:
    _service.run(_requests(Draw(data)))


async def _requests(draw: Draw) -> None:
    memory = _Memory()
    await _set_scene(draw.below(3), memory)
    for _ in range(1 + draw.below(5)):
        sent = _good(draw, memory)
        for _ in range(draw.pick((0, 0, 1, 3))):
            sent = _worse(draw, sent, memory)
        await _send(draw, sent, memory)


async def _set_scene(scene: int, memory: _Memory) -> None:
    """What is there already: 0 for nothing, 1 for an object, 2 for an upload of two parts as well."""
    plainly = Draw(b"")
    if scene > 0:
        await _send(plainly, Sent("PUT", "bucket", "k", body=b"body"), memory)
    if scene > 1:
        await _send(plainly, Sent("POST", "bucket", "k", (("uploads", ""),)), memory)
        for number in ("1", "2"):
            parameters = (("partNumber", number), ("uploadId", memory.upload_id))
            await _send(plainly, Sent("PUT", "bucket", "k", parameters, b"p" * 1024), memory)


async def _send(draw: Draw, sent: Sent, memory: _Memory) -> None:
    path = "/" + quote(sent.bucket) + (f"/{quote(sent.key)}" if sent.key else "")
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sent.parameters)
    if draw.one_in(8):
        path = spliced(draw, path, _WORDS)
    if draw.one_in(8):
        query = spliced(draw, query, _WORDS)
    headers = dict(sent.headers)
    nbytes = len(sent.body)
    if draw.one_in(8):
        headers["transfer-encoding"] = "chunked"
    elif "transfer-encoding" not in headers:
        nbytes = max(0, nbytes + draw.pick((0, 0, 0, 0, 0, 1, -1, 5000, 1 << 23)))
        headers["content-length"] = str(nbytes)
    piece_nbytes = draw.pick((1 << 20, 7, 1000)) if nbytes < 10_000 else 1 << 17
    body = Body(sent.body, nbytes, piece_nbytes)
    request = _service.request(
        draw.pick(_CALLERS), sent.method, path, query, headers, body, sent.payload_hash or sha256(sent.body)
    )
    response, content = await _service.answer(_service.s3, request)
    if found := _UPLOAD_ID.search(content):
        memory.upload_id = found[1].decode()
    if etag := response.headers.get("ETag"):
        memory.etags = [memory.etags[-1], etag.strip('"')]


def _good(draw: Draw, memory: _Memory) -> Sent:
    """A request that succeeds in the right order."""
    part = b"p" * 1024
    upload = (("uploadId", memory.upload_id),)
    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        for number, etag in enumerate(memory.etags[draw.below(2) :], 1)
    )
    deleted = "".join(f"<Object><Key>{key}</Key></Object>" for key in ("k", "k/1", "é", _CHUNK_KEY))
    return draw.pick(
        (
            Sent("PUT", "bucket", "k", body=draw.some(40)),
            Sent("PUT", "bucket", draw.pick(_KEYS), body=draw.some(4) * draw.pick((1, 1, 1, 1000, 1000, 400_000))),
            Sent("GET", "bucket", "k"),
            Sent("HEAD", "bucket", draw.pick(_KEYS)),
            Sent(
                "GET",
                "bucket",
                draw.pick(_KEYS),
                headers=(("range", draw.pick(("bytes=0-0", "bytes=-7", "bytes=2-"))),),
            ),
            Sent("DELETE", "bucket", draw.pick(_KEYS)),
            Sent("POST", "bucket", "k", (("uploads", ""),)),
            Sent("PUT", "bucket", "k", (("partNumber", draw.pick(("1", "2"))), *upload), part * draw.pick((1, 1, 3))),
            Sent("GET", "bucket", "k", upload),
            Sent("DELETE", "bucket", "k", upload),
            Sent(
                "POST", "bucket", "k", upload, f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
            ),
            Sent("POST", "bucket", "", (("delete", ""),), f"<Delete>{deleted}</Delete>".encode()),
            Sent("GET", "bucket", "", (("uploads", ""), ("delimiter", "/"), ("max-uploads", "1"))),
            Sent("GET", "bucket", "", (("list-type", "2"), ("max-keys", "1"), ("encoding-type", "url"))),
            Sent("GET", "bucket", "", (("prefix", "k"), ("delimiter", "/"))),
            Sent("GET", "", ""),
            Sent("PUT", "made", "", body=b"<CreateBucketConfiguration/>"),
            Sent("DELETE", draw.pick(_BUCKETS), ""),
            Sent("HEAD", draw.pick(_BUCKETS), ""),
            Sent("GET", "bucket", "", (("location", ""),)),
            Sent("PUT", "bucket", "k/1", headers=(("x-amz-copy-source", draw.pick(_SOURCES)),)),
            Sent(
                "PUT",
                "bucket",
                "k",
                (("partNumber", "1"), *upload),
                headers=(("x-amz-copy-source", draw.pick(_SOURCES)),),
            ),
            Sent("GET", "bucket", "k", (("attributes", ""),), headers=(("x-amz-object-attributes", "ObjectParts"),)),
            Sent("PUT", "bucket", "", (("cors", ""),), _CORS),
            Sent("PUT", "bucket", "", (("lifecycle", ""),), _LIFECYCLE),
            Sent("PUT", "bucket", "", (("policy", ""),), _POLICY),
            Sent("GET", "bucket", "", ((draw.pick(("cors", "lifecycle", "policy", "policyStatus")), ""),)),
            Sent("PUT", "bucket", "k", headers=(("x-amz-tagging", "a=b&c"), ("x-amz-acl", "public-read"))),
            Sent("GET", "alpha_bucket", "k", headers=(("origin", "http://x.a"),)),
            Sent(
                "OPTIONS",
                "alpha_bucket",
                "k",
                headers=(("origin", "http://x.a"), (_ASKED_METHOD, "GET"), (_ASKED_HEADERS, "x-a, x-b")),
            ),
            Sent("PUT", "bucket", _MANIFEST_KEY, body=SPACE.canonical_json()),
            Sent("PUT", "bucket", _CHUNK_KEY, body=_CHUNK),
            Sent("GET", "bucket", _CHUNK_KEY),
            Sent(
                "PUT",
                "bucket",
                "k",
                body=b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:NSRBwg==\r\n\r\n",
                headers=(("x-amz-decoded-content-length", "3"), ("x-amz-trailer", "x-amz-checksum-crc32")),
                payload_hash="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            ),
        )
    )


def _worse(draw: Draw, sent: Sent, memory: _Memory) -> Sent:
    part = draw.below(7)
    if part == 0:
        return sent._replace(method=draw.pick(("GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS")))
    if part == 1:
        return sent._replace(bucket=draw.pick(_BUCKETS), key=draw.pick(_KEYS) if draw.one_in(2) else sent.key)
    if part == 2:
        value = draw.pick((*_VALUES, memory.upload_id)) if draw.below(3) else draw.some(10).decode("utf-8", "replace")
        return sent._replace(parameters=(*sent.parameters, (draw.pick(_PARAMETERS), value)))
    if part == 3:
        value = draw.pick((*_HEADER_VALUES, *memory.etags)) if draw.below(3) else draw.header_value(20)
        return sent._replace(headers=(*sent.headers, (draw.pick(_HEADERS), value)))
    if part == 4:
        at = draw.below(len(sent.body) + 1)
        return sent._replace(body=sent.body[:at] + draw.some(8) + sent.body[at + draw.pick((0, 1, 4, 1000)) :])
    if part == 5:
        return sent._replace(payload_hash=draw.pick(_PAYLOAD_HASHES))
    return sent._replace(parameters=sent.parameters[1:])


TARGETS = (Target("requests", 40_000, check, close=_service.close),)
