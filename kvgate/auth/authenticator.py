"""Who a request or a form speaks for, by its signature alone, or by a token that was issued for one."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping

from kvgate.auth.claim import Claim, is_presigned, is_presigned_v2, parse_claim
from kvgate.auth.form_claim import FormClaim, parse_form_claim
from kvgate.auth.identity import UNSIGNED, ChunkedPayload, ChunkSigning, Identity, Payload, SignedPayload
from kvgate.auth.post_policy import PostPolicy
from kvgate.auth.session import Sessions
from kvgate.auth.sigv2 import PresignedV2, check_expiration
from kvgate.auth.sigv4 import (
    MAX_EXPIRES_S,
    UNSIGNED_PAYLOAD,
    canonical_query,
    canonical_request,
    signature,
    signing_key,
)
from kvgate.auth.tenants import Tenant, Tenants
from kvgate.errors import (
    AccessDenied,
    ClockSkew,
    ExpiredRequest,
    InvalidArgument,
    InvalidRequest,
    MalformedAuthorization,
    SignatureMismatch,
    UnsupportedOperation,
)
from kvgate.messages import Request

_MISMATCH = (
    "the signature is not the one that this access key's secret gives for the request as it arrived; check the secret, "
    "and that no proxy changes the path, the query or a signed header"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BEARER = "bearer "
_NOT_TEMPORARY = "temporary credentials are not issued here; sign without a session token"
_UNSIGNED_CHUNKS = ChunkedPayload(trailer=True, signing=None)


class Authenticator:
    """Verifies header signatures, presigned queries and tokens. Any region is accepted: it only separates signing keys.

    sessions: issues the tokens
    """

    def __init__(
        self,
        tenants: Tenants,
        clock: Callable[[], float],
        max_skew_s: float = 900,
        *,
        sigv2: bool = True,
        session_ttl_s: float = 0,
    ) -> None:
        """
        clock:         gives seconds since the epoch
        sigv2:         whether queries and forms may be presigned by Signature Version 2
        session_ttl_s: the longest that a token is good for; 0 accepts none
        """
        self.sessions = Sessions(tenants, clock, session_ttl_s, max_skew_s)
        self._tenants = tenants
        self._clock = clock
        self._max_skew_s = max_skew_s
        self._sigv2 = sigv2

    def authenticate(self, request: Request) -> Identity:
        """The identity that a request proves.

        Raises AccessDenied (none, or headers left unsigned), MalformedAuthorization, UnknownAccessKey, ClockSkew,
        ExpiredRequest, SignatureMismatch, InvalidToken, ExpiredToken, InvalidRequest, or UnsupportedOperation for an
        ECDSA-signed body.
        """
        if request.headers.is_repeated("authorization"):
            raise InvalidRequest("two Authorization headers; one of them must go")
        authorization = request.headers.get("authorization")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            return self._authenticate_token(authorization[len(_BEARER) :], request)
        if self._sigv2 and is_presigned_v2(request):
            return self._authenticate_v2(PresignedV2(request))
        claim = parse_claim(request)
        tenant, secret_key = self._tenants.credential(claim.access_key)
        self._check_time(claim)
        _check_coverage(claim, request)
        query = canonical_query(request.raw_query, None if claim.expires_s is None else "X-Amz-Signature")
        canonical = canonical_request(
            request.method,
            request.raw_path,
            query,
            claim.signed_headers,
            request.headers,
            claim.payload,
        )
        key = signing_key(secret_key, claim.scope)
        if not hmac.compare_digest(signature(key, claim.amz_date, claim.scope, canonical), claim.signature):
            raise SignatureMismatch(_MISMATCH)
        return Identity(tenant, _payload(claim, key), "" if claim.expires_s is not None else claim.access_key)

    def authenticate_form(self, fields: Mapping[str, str]) -> tuple[Tenant, PostPolicy]:
        """The tenant that a POST form speaks for, and the policy that its fields and file are still to be held against.

        fields: by lower-case name
        Raises AccessDenied (no signature, or a policy for too long), MalformedAuthorization, UnknownAccessKey,
        ClockSkew, ExpiredRequest, SignatureMismatch, InvalidArgument, InvalidPolicyDocument.
        """
        claim = parse_form_claim(fields, accept_v2=self._sigv2)
        tenant, secret_key = self._tenants.credential(claim.access_key)
        if not claim.matches(secret_key):
            raise SignatureMismatch(
                "the signature is not the one that this access key's secret gives for the form's policy"
            )
        policy = PostPolicy.parse(claim.policy)
        self._check_form_time(claim, policy)
        return tenant, policy

    def _check_form_time(self, claim: FormClaim, policy: PostPolicy) -> None:
        now = self._clock()
        if now > policy.expires:
            raise ExpiredRequest("Invalid according to Policy: Policy expired.")
        if claim.signed_at is None:
            check_expiration(now, policy.expires)
        elif now - claim.signed_at < -self._max_skew_s:
            raise ClockSkew("the form is signed for a time that is still to come")
        elif now - claim.signed_at > MAX_EXPIRES_S:
            raise ExpiredRequest(f"the form was signed over {MAX_EXPIRES_S} s ago; no signature is good for longer")

    def _authenticate_token(self, token: str, request: Request) -> Identity:
        """As if the request were signed with an unsigned body: a token says nothing of what comes with it."""
        headers = request.headers
        if is_presigned(request):
            raise InvalidRequest("both a token and a presigned query; one of them must go")
        if "x-amz-security-token" in headers:
            raise MalformedAuthorization(_NOT_TEMPORARY)
        tenant = self.sessions.verify(token)
        payload = headers.get("x-amz-content-sha256")
        return Identity(tenant, _unsigned_payload(payload) if payload else UNSIGNED)

    def _authenticate_v2(self, claim: PresignedV2) -> Identity:
        tenant, secret_key = self._tenants.credential(claim.access_key)
        claim.check_time(self._clock())
        if not claim.matches(secret_key):
            raise SignatureMismatch(_MISMATCH)
        return Identity(tenant, UNSIGNED)

    def _check_time(self, claim: Claim) -> None:
        age_s = self._clock() - claim.signed_at
        if claim.expires_s is None:
            if abs(age_s) > self._max_skew_s:
                raise ClockSkew(
                    f"the request is of {claim.amz_date}, {abs(age_s):.0f} s from the gateway's time; at most "
                    f"{self._max_skew_s:.0f} s are accepted"
                )
        elif age_s < -self._max_skew_s:
            raise ClockSkew(f"the request is presigned for {claim.amz_date}, which is still to come")
        elif age_s > claim.expires_s:
            raise ExpiredRequest(f"the request was presigned at {claim.amz_date} for {claim.expires_s} s")


def _check_coverage(claim: Claim, request: Request) -> None:
    """What changes the meaning of a request must be signed: the host and every x-amz-* header."""
    covered = claim.signed_headers
    if "host" not in covered:
        raise AccessDenied("the host header must be among SignedHeaders")
    if not request.headers.all_among(claim.sufficient):
        for name in request.headers.names():
            if name.startswith("x-amz-") and name not in covered:
                raise AccessDenied(f"the header {name} is sent but not among SignedHeaders")
    if "x-amz-security-token" in request.headers:
        raise MalformedAuthorization(_NOT_TEMPORARY)


def _payload(claim: Claim, key: bytes) -> Payload:
    text = claim.payload
    if text in ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"):
        signing = ChunkSigning(key, claim.signature, claim.scope, claim.amz_date)
        return ChunkedPayload(trailer=text.endswith("-TRAILER"), signing=signing)
    return _unsigned_payload(text)


def _unsigned_payload(text: str) -> Payload:
    """How a body is protected without signatures of its own."""
    if text == UNSIGNED_PAYLOAD:
        return UNSIGNED
    if _SHA256.fullmatch(text):
        return SignedPayload(text)
    if text == "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
        return _UNSIGNED_CHUNKS
    if text.startswith("STREAMING-AWS4-ECDSA-"):
        raise UnsupportedOperation("bodies signed with ECDSA (Signature V4A) are not supported; sign with AWS4-HMAC")
    if text.startswith("STREAMING-AWS4-HMAC-"):
        raise InvalidArgument("the chunks of a body can be signed only where the request is")
    raise InvalidArgument(
        "x-amz-content-sha256 must be 64 lower-case hex digits, UNSIGNED-PAYLOAD, or a STREAMING form that S3 defines"
    )
