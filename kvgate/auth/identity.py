"""Who a verified request speaks for, and how its body is protected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kvgate.auth.sigv4 import Scope
from kvgate.auth.tenants import Tenant


@dataclass(frozen=True, slots=True)
class UnsignedPayload:
    """The signature does not cover the body."""


UNSIGNED = UnsignedPayload()


@dataclass(frozen=True, slots=True)
class SignedPayload:
    """The whole body must have this sha256."""

    sha256: str


@dataclass(frozen=True, slots=True)
class ChunkSigning:
    """What the first chunk's signature is chained to, and the key of the chain."""

    key: bytes = field(repr=False)
    seed_signature: str = field(repr=False)
    scope: Scope
    amz_date: str


@dataclass(frozen=True, slots=True)
class ChunkedPayload:
    """The body is framed as aws-chunked, with trailing headers or without; each chunk is signed, or none is."""

    trailer: bool
    signing: ChunkSigning | None


Payload = UnsignedPayload | SignedPayload | ChunkedPayload


class Identity(NamedTuple):
    """The tenant that a request's credential belongs to, and the protection of the request's body.

    signed_by: the access key whose secret has signed this very request in its headers; empty where a URL that was
               presigned, or a token, stands for it
    """

    tenant: Tenant
    payload: Payload
    signed_by: str = ""
