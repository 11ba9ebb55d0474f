"""The proof by which an engine attaches to a gateway's memory: a signature over the gateway's nonce.

The nonce is random and good for one connection, so that a proof which was overheard is of no use. The signed request
is one that HTTP has no way to send, so that neither kind of proof can stand for the other.
"""

from __future__ import annotations

from kvgate.auth.sigv4 import EMPTY_SHA256, Credential, sign
from kvgate.messages import Headers, Request

_METHOD = "ATTACH"
_PATH = "/_kv/shm"
_HOST = "kvgate-shm"
_REGION = "us-east-1"


def sign_attach(credential: Credential, boot_id: bytes, nonce: bytes, *, write: bool, now: float) -> tuple[str, str]:
    """The date and the authorization to send; `now` is in seconds since the epoch."""
    query = _query(boot_id, nonce, write=write)
    added = sign(credential, _METHOD, _PATH, query, {"host": _HOST}, region=_REGION, now=now, payload_hash=EMPTY_SHA256)
    return added["x-amz-date"], added["authorization"]


def attach_request(boot_id: bytes, nonce: bytes, amz_date: str, authorization: str, *, write: bool) -> Request:
    """The request that a proof is a signature of, for the authenticator."""
    headers = {
        "host": _HOST,
        "x-amz-date": amz_date,
        "x-amz-content-sha256": EMPTY_SHA256,
        "authorization": authorization,
    }
    return Request(_METHOD, _PATH, _query(boot_id, nonce, write=write), Headers(headers.items()))


def _query(boot_id: bytes, nonce: bytes, *, write: bool) -> str:
    return f"boot={boot_id.hex()}&nonce={nonce.hex()}&write={int(write)}"
