"""What the gateway does with each operation and header of S3, found by asking the code that does it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

from kvgate.auth import sigv4
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import ChunkedPayload, Payload, UnsignedPayload
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.errors import KVGateError, RDMANotOffered, UnsupportedOperation
from kvgate.messages import Headers, Request
from kvgate.metrics import Metrics
from kvgate.s3.api import S3
from kvgate.s3.call import Call
from kvgate.s3.checksums import algorithm_of
from kvgate.s3.operations.base import Operation
from kvgate.s3.routes import ACCEPTED_VALUES, COPY_ROUTES, COPY_SOURCE, ROUTES, Resource, route
from kvgate.s3.target import parse_target
from kvgate.store.config import StoreConfig
from kvgate.store.store import open_store
from kvgate.tiers.host import HostConfig, HostTier

HEADERS = """
cache-control content-disposition content-encoding content-language content-length content-md5 content-type expires
if-match if-modified-since if-none-match if-range if-unmodified-since range
x-amz-acl x-amz-bucket-object-lock-enabled x-amz-bypass-governance-retention x-amz-checksum-algorithm
x-amz-checksum-crc32 x-amz-checksum-crc32c x-amz-checksum-crc64nvme x-amz-checksum-sha1 x-amz-checksum-sha256
x-amz-checksum-mode x-amz-checksum-type x-amz-content-sha256 x-amz-copy-source x-amz-copy-source-if-match
x-amz-copy-source-if-modified-since x-amz-copy-source-if-none-match x-amz-copy-source-if-unmodified-since
x-amz-copy-source-range x-amz-copy-source-server-side-encryption-customer-algorithm x-amz-date
x-amz-decoded-content-length x-amz-expected-bucket-owner x-amz-grant-full-control x-amz-grant-read
x-amz-grant-read-acp x-amz-grant-write x-amz-grant-write-acp x-amz-if-match-last-modified-time x-amz-if-match-size
x-amz-max-parts x-amz-meta-probe x-amz-metadata-directive x-amz-mfa x-amz-mp-object-size x-amz-object-attributes
x-amz-object-lock-legal-hold x-amz-object-lock-mode x-amz-object-lock-retain-until-date x-amz-object-ownership
x-amz-optional-object-attributes x-amz-part-number-marker x-amz-rdma-token x-amz-rename-source x-amz-request-payer
x-amz-sdk-checksum-algorithm x-amz-security-token x-amz-server-side-encryption
x-amz-server-side-encryption-aws-kms-key-id x-amz-server-side-encryption-context
x-amz-server-side-encryption-customer-algorithm x-amz-source-expected-bucket-owner x-amz-storage-class x-amz-tagging
x-amz-tagging-directive x-amz-te x-amz-trailer x-amz-user-agent x-amz-website-redirect-location
x-amz-write-offset-bytes x-rdma-info
""".split()  # noqa: SIM905
"""The request headers of S3, of all its versions."""

SUBRESOURCES = {
    Resource.BUCKET: """
        accelerate acl analytics cors delete encryption intelligent-tiering inventory lifecycle list-type location
        logging metadataConfiguration metrics notification object-lock ownershipControls policy policyStatus
        publicAccessBlock replication requestPayment session tagging uploads versioning versions website
    """,
    Resource.OBJECT: """
        acl attributes legal-hold renameObject restore retention select tagging torrent uploadId uploads
    """,
}
"""The subresources of S3."""

_UNSIGNED = UnsignedPayload()
_VALUES = {"uploadId": "x", "partNumber": "1", "list-type": "2"}
_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
_PLACES = {Resource.SERVICE: "/", Resource.BUCKET: "/b", Resource.OBJECT: "/b/k"}

Key = tuple[str, Resource, str]
"""Method, resource and subresource."""

Route = tuple[Key, Operation[Any], bool]
"""A key; the operation; whether a copy source is what leads there."""


class Recorded(Headers):
    """Headers that remember which were asked for."""

    __slots__ = ("asked",)

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        super().__init__(items)
        self.asked: set[str] = set()

    def get(self, name: str, default: str = "") -> str:
        self.asked.add(name)
        return super().get(name, default)

    def getall(self, name: str) -> list[str]:
        self.asked.add(name)
        return super().getall(name)

    def has_any(self, names: frozenset[str]) -> bool:
        self.asked |= names
        return super().has_any(names)

    def all_among(self, names: frozenset[str]) -> bool:
        return False  # so that nobody spares the look at the others

    def __contains__(self, name: str) -> bool:
        self.asked.add(name)
        return super().__contains__(name)


def routes() -> list[Route]:
    """Every route, in the order of the operations' names."""
    found = [(key, operation, False) for key, operation in ROUTES.items()]
    found += [(key, operation, True) for key, operation in COPY_ROUTES.items()]
    return sorted(found, key=lambda each: each[1].name)


def operations_table() -> str:
    """The operations, the requests that they answer and what these may say."""
    lines = ["| operation | request | query parameters | needs |", "|---|---|---|---|"]
    for (method, resource, subresource), operation, copies in routes():
        place = {Resource.SERVICE: "/", Resource.BUCKET: "/bucket", Resource.OBJECT: "/bucket/key"}[resource]
        request = f"`{method} {place}{f'?{subresource}' if subresource else ''}`" + f" with `{COPY_SOURCE}`" * copies
        parameters = ", ".join(f"`{name}`" for name in sorted(operation.parameters))
        needs = "" if resource is Resource.SERVICE else f"`s3:{operation.action or operation.name}`"
        lines.append(f"| {operation.name} | {request} | {parameters} | {needs} |")
    return "\n".join(lines) + "\n"


def headers_table() -> str:
    """What becomes of each header of S3."""
    always = asyncio.run(_read_by_all())
    lines = ["| header | read by | refused with 501 by |", "|---|---|---|"]
    ignored = []
    for header in HEADERS:
        read = [operation.name for key, operation, copies in routes() if _reads(key, operation, copies, header)]
        refused = [operation.name for key, operation, copies in routes() if _refuses(key, operation, copies, header)]
        shown = header.replace("x-amz-meta-probe", "x-amz-meta-*")
        if harmless := ACCEPTED_VALUES.get(header):
            values = " or ".join(f"`{value}`" for value in sorted(harmless))
            lines.append(f"| `{shown}` | {_names(read)} | {_names(refused)}, unless it is {values} |")
        elif read or refused:
            lines.append(f"| `{shown}` | {_names(read)} | {_names(refused)} |")
        elif header in always:
            lines.append(f"| `{shown}` | every operation | |")
        else:
            ignored.append(f"`{shown}`")
    return "\n".join(lines) + "\n\nIgnored by every operation: " + ", ".join(ignored) + ".\n"


def subresources_table() -> str:
    """What becomes of each subresource of S3."""
    lines = ["| of | subresource | offered with | refused with 501 |", "|---|---|---|---|"]
    for resource, names in SUBRESOURCES.items():
        for name in names.split():
            offered = [method for method in _METHODS if (method, resource, name) in ROUTES]
            refused = all(_status(method, f"{_PLACES[resource]}?{name}") == 501 for method in ("GET", "PUT", "DELETE"))
            assert bool(offered) != refused, name
            lines.append(f"| {resource.value} | `{name}` | {', '.join(offered)} | {'yes' if refused else ''} |")
    return "\n".join(lines) + "\n"


def _names(names: list[str]) -> str:
    everything = {operation.name for _, operation, _ in routes()}
    missing = sorted(everything - set(names))
    if not missing:
        return "every operation"
    return f"all but {', '.join(missing)}" if len(missing) < len(names) else ", ".join(names)


def _call(key: Key, *headers: tuple[str, str], copies: bool, payload: Payload = _UNSIGNED) -> Call:
    method, resource, subresource = key
    operation = (COPY_ROUTES if copies else ROUTES)[key]
    wanted = {subresource, *operation.parameters} & _VALUES.keys() | {subresource} - {""}
    query = "&".join(f"{name}={_VALUES.get(name, '')}" for name in sorted(wanted))
    path = _PLACES[resource]
    copy = [(COPY_SOURCE, "/b/k"), ("x-amz-metadata-directive", "REPLACE")] if copies else []
    items = [("host", "h"), ("content-length", "0"), *copy, *headers]
    return Call(Request(method, path, query, Recorded(items)), parse_target(path, query), payload)


def _reads(key: Key, operation: Operation[Any], copies: bool, header: str) -> bool:
    """Whether an operation asks for a header, or for all of its kind, when it parses a request."""
    if operation.form:  # what it is told are the fields of the form
        return False
    answers = []
    for payload in (ChunkedPayload(trailer=True, signing=None), _UNSIGNED):
        plain = _call(key, copies=copies, payload=payload)
        answers.append(_parse(operation, plain))
        assert isinstance(plain.headers, Recorded)
        if header in plain.headers.asked:
            return True
    if not header.startswith("x-amz-meta-") and not algorithm_of(header):
        return False
    with_it = _parse(operation, _call(key, (header, "AAAA"), copies=copies))
    if isinstance(with_it, KVGateError):  # a digest of that length is refused by who reads it
        return str(with_it) != str(answers[-1])
    said = getattr(with_it, "attributes", None) or getattr(with_it, "metadata", None) or {}
    return header in said or header in getattr(with_it, "headers", ())


def _parse(operation: Operation[Any], call: Call) -> Any:
    try:
        return operation.parse(call)
    except KVGateError as error:
        return error


def _refuses(key: Key, operation: Operation[Any], copies: bool, header: str) -> bool:
    if header == COPY_SOURCE and (copies or key in COPY_ROUTES):
        return False
    try:
        route(_call(key, (header, "probe"), copies=copies))
    except (UnsupportedOperation, RDMANotOffered) as error:
        return header in str(error) or isinstance(error, RDMANotOffered)
    return False


def _status(method: str, target: str) -> int:
    path, _, query = target.partition("?")
    try:
        route(Call(Request(method, path, query), parse_target(path, query), UnsignedPayload()))
    except UnsupportedOperation:
        return 501
    except KVGateError:
        return 405
    return 200


async def _read_by_all() -> set[str]:
    """The headers that a request is asked for before its operation is known, or whatever it is."""
    tenants = Tenants({"acme": TenantConfig((AccessKeyConfig("ACMEKEY", Secret("a-secret-of-acme's")),))})
    headers = {"host": "h", "x-amz-meta-probe": ""}
    signed = sigv4.sign(
        sigv4.Credential("ACMEKEY", "a-secret-of-acme's"), "GET", "/", "", headers, region="us-east-1", now=time.time()
    )
    recorded = Recorded({**headers, **signed}.items())
    memory = HostTier(HostConfig())
    async with open_store(memory, [], tenants, config=StoreConfig(), metrics=Metrics(), catalog=None) as store:
        api = S3(store, tenants, Authenticator(tenants, time.time), "us-east-1")
        response = await api.handle(Request("GET", "/", "", recorded), "id")
    assert response.status == 200
    return recorded.asked - {COPY_SOURCE, "x-amz-meta-probe"}


def page(text: str) -> str:
    """The page with its tables made anew, each behind its heading."""
    return "".join(_sections(text))


def _sections(text: str) -> Iterator[str]:
    tables = {"operations": operations_table, "headers": headers_table, "subresources": subresources_table}
    for number, part in enumerate(text.split("<!-- table: ")):
        if not number:
            yield part
            continue
        name, _, rest = part.partition(" -->\n")
        _, _, after = rest.partition("<!-- end -->")
        yield f"<!-- table: {name} -->\n{tables[name]()}<!-- end -->{after}"
