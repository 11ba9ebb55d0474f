"""What S3 costs a request without its HTTP front: CPU µs of S3.handle, step by step, beside the cryptography alone.

    python loadtest/handle.py --rounds 25

HEAD and GET of an object of 256 KiB in memory, in this process, signed by SigV4 or with a session token. A row is what
one request costs: making its headers and `Request`, handling it, and closing the body. `PUT, of the plane` is what is
decided of an upload whose head and body the native plane takes: opening it and storing it. `floor` is one SHA-256 of
the canonical request and one HMAC of the string to sign, which no implementation of SigV4 can leave out. Each figure
is the best of the rounds, in CPU time of this thread.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from functools import partial

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.claim import parse_claim
from kvgate.auth.query_headers import with_query_headers
from kvgate.auth.sigv4 import UNSIGNED_PAYLOAD, Credential, sign, signing_key
from kvgate.auth.tenants import AccessKeyConfig, Tenant, TenantConfig, Tenants
from kvgate.config import MiB, Secret, Size
from kvgate.messages import Headers, Request, Response
from kvgate.metrics import Metrics
from kvgate.s3.access import Access
from kvgate.s3.api import S3
from kvgate.s3.call import Call
from kvgate.s3.operations.base import Context
from kvgate.s3.plain_put import open_plain_put
from kvgate.s3.routes import route
from kvgate.s3.target import parse_target
from kvgate.store.config import StoreConfig
from kvgate.store.store import Store, open_store
from kvgate.tiers.host import HostConfig, HostTier

CREDENTIAL = Credential("LOADKEY00000", "load-secret-0123456789abcdef")
BUCKET, KEY = "bucket", "model/" + "7" * 64
PATH = f"/{BUCKET}/{KEY}"
NBYTES = 256 << 10

Pairs = list[tuple[str, str]]


def headers(method: str, authorization: Callable[[str, dict[str, str]], dict[str, str]]) -> Pairs:
    """What `kvgate.client` sends."""
    common = {
        "host": "127.0.0.1:9000",
        "user-agent": "kvgate/0.1.0",
        "accept-encoding": "identity",
        "x-amz-checksum-mode": "ENABLED",
    }
    return list((common | authorization(method, common)).items())


def signed(method: str, common: dict[str, str]) -> dict[str, str]:
    return sign(CREDENTIAL, method, PATH, "", common, region="us-east-1", now=time.time())


async def best_us(rows: dict[str, Callable[[], object]], requests: int, rounds: int) -> dict[str, float]:
    """CPU µs that one call of each row takes in its quickest round; the rows take turns."""
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(rounds):
        for name, work in rows.items():
            waits = asyncio.iscoroutinefunction(work)
            began = time.thread_time_ns()
            for _ in range(requests):
                if waits:
                    await work()
                else:
                    work()
            best[name] = min(best[name], (time.thread_time_ns() - began) / requests / 1000)
    return best


class Body:
    """The object's bytes, all zero."""

    def __init__(self) -> None:
        self._left = NBYTES

    async def readinto(self, view: memoryview) -> int:
        count = min(len(view), self._left)
        view[:count] = bytes(count)
        self._left -= count
        return count


async def store_object(s3: S3) -> None:
    sent = [*headers("PUT", signed), ("content-length", str(NBYTES))]
    response = await s3.handle(Request("PUT", PATH, "", Headers.lowered(sent), Body()), "0123456789abcdef")
    if response.status != 200:
        raise SystemExit(f"PUT is answered {response.status}: {response.body!r}")


async def measure(requests: int, rounds: int) -> None:
    key = AccessKeyConfig(CREDENTIAL.access_key, Secret(CREDENTIAL.secret_key))
    tenants = Tenants({"load": TenantConfig((key,), (BUCKET,))})
    memory = HostTier(HostConfig(capacity=Size(64 * MiB), segment=Size(16 * MiB)))
    async with open_store(memory, [], tenants, config=StoreConfig(), metrics=Metrics(), catalog=None) as store:
        authenticator = Authenticator(tenants, time.time, session_ttl_s=3600)
        s3 = S3(store, tenants, authenticator, "us-east-1", next(iter(tenants)))
        await store_object(s3)
        token = authenticator.sessions.issue(CREDENTIAL.access_key, 3600).token
        pairs = {
            "HEAD SigV4": ("HEAD", headers("HEAD", signed)),
            "HEAD token": ("HEAD", headers("HEAD", lambda *_: {"authorization": f"Bearer {token}"})),
            "GET 256K SigV4": ("GET", headers("GET", signed)),
            "GET 256K token": ("GET", headers("GET", lambda *_: {"authorization": f"Bearer {token}"})),
        }
        rows = {"floor": floor_of(pairs["HEAD SigV4"][1])}
        rows |= {name: partial(one, s3, *request) for name, request in pairs.items()}
        rows["PUT, of the plane"] = partial(upload, store, next(iter(tenants)))
        rows |= steps(store, tenants, authenticator, pairs)
        found = await best_us(rows, requests, rounds)
    print(f"{'':24} {'µs':>7} {'x floor':>8}")
    for name, us in found.items():
        print(f"{name:24} {us:>7.2f} {us / found['floor']:>8.1f}")


async def one(s3: S3, method: str, sent: Pairs) -> None:
    response = await s3.handle(Request(method, PATH, "", Headers.lowered(sent)), "0123456789abcdef")
    if response.status != 200:
        raise SystemExit(f"{method} is answered {response.status}: {response.body!r}")
    if not isinstance(response.body, bytes):
        response.body.close()


async def upload(store: Store, tenant: Tenant) -> None:
    put = await open_plain_put(store, tenant, PATH + "-put", 1, None, None)
    if put is None:
        raise SystemExit("a plain PUT is not taken")
    put.digest.update(b"x")
    await put.store()


def floor_of(sent: Pairs) -> Callable[[], object]:
    """The cryptography of one signature, and nothing else."""
    claim = parse_claim(Request("HEAD", PATH, "", Headers.lowered(sent)))
    key = signing_key(CREDENTIAL.secret_key, claim.scope)
    values = dict(sent)
    lines = "".join([f"{name}:{values[name]}\n" for name in claim.signed_headers])
    canonical = f"HEAD\n{PATH}\n\n{lines}\n{';'.join(claim.signed_headers)}\n{UNSIGNED_PAYLOAD}".encode()
    to_sign = f"AWS4-HMAC-SHA256\n{claim.amz_date}\n{claim.scope}\n".encode()

    def compute() -> bytes:
        return hmac.digest(key, to_sign + hashlib.sha256(canonical).hexdigest().encode(), "sha256")

    return compute


def steps(
    store: Store, tenants: Tenants, authenticator: Authenticator, pairs: dict[str, tuple[str, Pairs]]
) -> dict[str, Callable[[], object]]:
    """The steps of a HEAD, each alone."""
    (_, sent), (_, bearing) = pairs["HEAD SigV4"], pairs["HEAD token"]
    request = Request("HEAD", PATH, "", Headers.lowered(sent))
    bearer = Request("HEAD", PATH, "", Headers.lowered(bearing))
    target = parse_target(PATH, "")
    identity = authenticator.authenticate(request)
    call = Call(request, target, identity.payload)
    operation = route(call)
    access = Access(store, tenants, identity.tenant, None)
    context = Context(store, "us-east-1", identity.tenant, access, {})

    async def run() -> Response:
        return await operation.run(context, call)

    return {
        "Headers, Request": lambda: Request("HEAD", PATH, "", Headers.lowered(sent)),
        "with_query_headers": lambda: with_query_headers(request),
        "parse_target": lambda: parse_target(PATH, ""),
        "Call, route": lambda: route(Call(request, target, identity.payload)),
        "authenticate SigV4": lambda: authenticator.authenticate(request),
        "authenticate token": lambda: authenticator.authenticate(bearer),
        "Access, resolve, check": lambda: _access(store, tenants, identity.tenant),
        "operation.run": run,
    }


def _access(store: Store, tenants: Tenants, tenant: object) -> None:
    access = Access(store, tenants, tenant, None)  # type: ignore[arg-type]
    owner, bucket = access.resolve(BUCKET)
    access.check(owner, bucket, KEY, "s3:GetObject", {})


def main() -> None:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=400, help="requests a round (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=25, help="rounds, of which the best counts (default: %(default)s)"
    )
    options = parser.parse_args()
    asyncio.run(measure(options.requests, options.rounds))


if __name__ == "__main__":
    main()
