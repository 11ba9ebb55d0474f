"""Identities that are proved in C: nothing that Python refuses, and for the tenant that Python names.

An input builds a request of the form that the data plane reads and signs it, or makes a token, with the real keys: as
clients do, or oddly here and there, and then changes it, or does not. So an odd claim is refused for what it is and not
for its signature. What is as clients send it must be accepted. Where kvgate.native was not built there is no target.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

from fuzz.draw import Draw, T, spliced
from fuzz.properties import must, refusals
from fuzz.targets.base import Target
from kvgate.auth.authenticator import Authenticator
from kvgate.auth.identity import UNSIGNED
from kvgate.auth.session import token_key
from kvgate.auth.sigv4 import Scope, signing_key
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.messages import Headers, Request

try:
    from kvgate.auth.native_credentials import native_credentials
except ImportError:
    NATIVE = False
else:
    NATIVE = True

_NOW, _SKEW_S, _TTL_S = 1_770_000_000, 900, 3600
_SECOND_OF_MARCH = 1_772_409_605  # 20260302T000005Z, where 20260230 and hour 24 would be near
_OWNERS = {"KEY-A": "alpha", "KEY+=.@_B": "alpha", "BETAKEY": "beta", "BET": "beta"}
_SECRET = "one-secret-for-all-0123"
_TENANTS = Tenants(
    {
        name: TenantConfig(
            tuple(AccessKeyConfig(key, Secret(f"{_SECRET}-{key}")) for key, owner in _OWNERS.items() if owner == name)
        )
        for name in ("alpha", "beta")
    }
)
_NAMES = tuple(tenant.name for tenant in _TENANTS)
_LIMITS: dict[str, float] = {"max_skew_s": _SKEW_S, "session_ttl_s": _TTL_S}
_now = 0.0
_PYTHON = {ttl_s: Authenticator(_TENANTS, lambda: _now, _SKEW_S, session_ttl_s=ttl_s) for ttl_s in (_TTL_S, 0)}
if NATIVE:
    _C = {ttl_s: native_credentials(_TENANTS, max_skew_s=_SKEW_S, session_ttl_s=ttl_s) for ttl_s in _PYTHON}

_HEX = hashlib.sha256().hexdigest()
_OPTIONAL = {  # what may be sent besides, usually
    "accept": "*/*",
    "accept-encoding": "identity",
    "amz-sdk-invocation-id": "0e1b4a4c-6d3f-4b8e-9f0e-3f1d2c4b5a69",
    "amz-sdk-request": "attempt=1; max=3",
    "connection": "keep-alive",
    "content-length": "0",
    "range": "bytes=0-1048575",
    "user-agent": "Boto3/1.44.8 md/Botocore#1.44.8 ua/2.1 os/linux#6.1",
    "x-amz-checksum-mode": "ENABLED",
}
_OPTIONAL_WITH_BODY = {  # and with a PUT, which has nothing to do with two of them
    **{name: value for name, value in _OPTIONAL.items() if name not in ("range", "x-amz-checksum-mode")},
    "content-length": "1048576",
    "content-type": "application/octet-stream",
    "expect": "100-continue",
    "x-amz-checksum-crc64nvme": "AAAAAAAAAAA=",
    "x-amz-sdk-checksum-algorithm": "CRC64NVME",
}
_LEFT_UNSIGNED = ("accept", "connection", "user-agent", "accept-encoding")
_ODD_VALUES = ("a  b", "a\tb", "", "a \t b", " a", "a\t", "é", "a:b\n", "x" * 300, "UNSIGNED-PAYLOAD")
_ODD_NAMES = ("date", "x-amz-security-token", "X-Amz-Date", "content-type", "hos", "hostt", "", "x-amz-acl")
_ODD_DATES = (
    *("20260202T023960Z", "20260202T240000Z", "20260202T026000Z", "20260202t024000Z", "0"),
    *("20260202T024000", "20260202T024000z", "99991231T235959Z", "19691231T235959Z", "00000000T000000Z", ""),
    *(
        "20260230T000000Z",
        "20260301T240000Z",
        "20260301T235960Z",
        "20260202T02400 Z",
        "20260202T-24000Z",
        "+0260202T024000Z",
    ),
)
_PATHS = ("/bucket/kv/space/0123abc", "/b/k", "/", "//a/../~b-_", "/b/a%20b", "/b/\u00e9", "b/k", "", "/b/k?x", "/b/*")
_PAYLOADS = (
    "",
    "unsigned-payload",
    _HEX,
    _HEX.upper(),
    _HEX[1:],
    _HEX + "0",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "-" * 64,
)
_WORDS = (
    *("Credential=", "SignedHeaders=", "Signature=", "AWS4-HMAC-SHA256", "/s3/aws4_request", "Bearer ", "kvs1."),
    *(
        ";",
        ",",
        ", ",
        " ",
        "  ",
        "\t",
        "/",
        ".",
        "=",
        "host",
        ";host",
        "x-amz-date",
        "20260202",
        "0" * 64,
        "UNSIGNED-PAYLOAD",
    ),
    *("KEY-A", "BETAKEY", "bytes=0-1", "\u00a0", "A", "f"),
)


class _Choices:
    """Usual things, and now and then an odd one. `odd` says whether there was one."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.odd = False

    def of(self, usual: T, *odd: T) -> T:
        if not self.draw.one_in(24):
            return usual
        self.odd = True
        return self.draw.pick(odd)


def check_signed(data: bytes) -> None:
    draw = Draw(data)
    choices = _Choices(draw)
    key = draw.pick(tuple(_OWNERS))
    now_s = draw.pick((_NOW, _SECOND_OF_MARCH))
    method = choices.of(draw.pick(("GET", "HEAD", "PUT")), "get")
    headers = {name: value for name, value in _optional(method).items() if draw.one_in(2)}
    headers["host"] = "gateway:9000"
    signed_at = now_s + choices.of(draw.pick((0, 0, -840, 840)), -899, 899, -900, 900, -901, 901, 86400)
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(signed_at))
    headers["x-amz-date"] = date = choices.of(date, *_ODD_DATES)
    headers["x-amz-content-sha256"] = choices.of(draw.pick(_usual_payloads(method)), *_PAYLOADS)
    if draw.one_in(8):
        choices.odd = True
        headers[draw.pick((*headers, *_ODD_NAMES))] = draw.pick(_ODD_VALUES)
    if draw.one_in(16):
        choices.odd = True
        del headers[draw.pick(tuple(headers))]
    names = sorted(name for name in headers if name not in _LEFT_UNSIGNED or draw.one_in(4))
    if draw.one_in(8):
        choices.odd = True
        name = draw.pick((*headers, *_OPTIONAL, *_ODD_NAMES, "authorization"))
        change = draw.below(3)
        if change == 0 and name in names:
            names.remove(name)
        elif change == 1:
            names.append(name)
        else:
            names = sorted([*names, name])
    scope = Scope(
        choices.of(date[:8], "20260202", "20260302", "2026020", "20260201"), choices.of("us-east-1", "", "e" * 65, "_")
    )
    scope = scope._replace(service=choices.of("s3", "S3", "sqs"))
    path = choices.of(draw.pick(_PATHS[:4]), *_PATHS[4:])
    listed = draw.pick((names, sorted(set(names))))
    values = {name: headers.get(name, "") for name in listed}
    if draw.one_in(2):  # as Python has it: values with single blanks
        values = {name: " ".join(value.split()) for name, value in values.items()}
    lines = "".join([f"{name}:{values[name]}\n" for name in listed])
    canonical = f"{method}\n{path}\n\n{lines}\n{';'.join(names)}\n{headers.get('x-amz-content-sha256', '')}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    signing = signing_key(f"{_SECRET}-{key}", scope)
    proof = hmac.digest(signing, f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}".encode(), "sha256").hex()
    comma = choices.of(draw.pick((", ", ",")), ",  ", " , ", ";", "")
    headers["authorization"] = (
        f"{choices.of('AWS4-HMAC-SHA256', 'AWS4-HMAC-SHA256 ', 'aws4-hmac-sha256', 'AWS')} "
        f"Credential={choices.of(key, 'BETAKEY', 'KEY-A', 'NOBODY', '')}/{scope}{comma}"
        f"SignedHeaders={';'.join(names)}{comma}Signature={choices.of(proof, proof.upper(), proof[1:], proof + '0')}"
    )
    _compare(choices, now_s, method, path, headers, key)


def check_tokens(data: bytes) -> None:
    draw = Draw(data)
    choices = _Choices(draw)
    key = draw.pick(tuple(_OWNERS))
    name = base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()
    same_bytes = {letter: chr(ord(letter) + 1) for letter in "AQgw"}  # the bits behind the last byte are not read
    name = choices.of(name, name + "=", name[:-1] + same_bytes.get(name[-1], "*"), name + "A", "QkVUQUtFWQ", "", "AAAA")
    ends_in_s = choices.of(draw.pick((60, 1, _TTL_S, _TTL_S + _SKEW_S)), 0, -1, _TTL_S + _SKEW_S + 1, 86400)
    end = choices.of(str(_NOW + ends_in_s), f"0{_NOW + 60}", f"+{_NOW + 60}", "9" * 13, "\u0661" * 10, "")
    signed = f"{choices.of('kvs1', 'kvs2', 'KVS1', '')}.{end}.{name}"
    owner = _OWNERS[choices.of(key, "KEY-A", "BETAKEY")]
    keyed = token_key(owner, choices.of(key, "KEY-A", "BETAKEY"), f"{_SECRET}-{key}")
    proof = hmac.digest(keyed, signed.encode(), "sha256").hex()
    token = f"{signed}.{choices.of(proof, proof.upper(), proof[1:], proof + '0')}"
    method = draw.pick(("GET", "HEAD", "PUT"))
    headers = {"host": "gateway:9000"} | {name: value for name, value in _optional(method).items() if draw.one_in(3)}
    headers["authorization"] = f"{choices.of(draw.pick(('Bearer', 'bearer', 'BEARER')), 'Bearer ', 'Bear', '')} {token}"
    if draw.one_in(3):
        headers["x-amz-content-sha256"] = choices.of(draw.pick(_usual_payloads(method)), *_PAYLOADS)
    if draw.one_in(12):
        choices.odd = True
        headers[draw.pick(_ODD_NAMES)] = draw.pick(_ODD_VALUES)
    _compare(choices, _NOW, method, draw.pick(_PATHS[:4]), headers, key)


def _optional(method: str) -> dict[str, str]:
    return _OPTIONAL_WITH_BODY if method == "PUT" else _OPTIONAL


def _usual_payloads(method: str) -> tuple[str, ...]:
    """Those that C proves with this method."""
    return ("UNSIGNED-PAYLOAD",) if method == "PUT" else ("UNSIGNED-PAYLOAD", _HEX)


def _compare(choices: _Choices, now_s: int, method: str, path: str, headers: dict[str, str], key: str) -> None:
    """What C makes of a request, and perhaps of a change of it, is what Python does, at any moment of the second."""
    global _now  # noqa: PLW0603  the gateway's clock
    draw = choices.draw
    for _ in range(draw.pick((0, 0, 0, 1, 2))):
        choices.odd = True
        name = draw.pick(("authorization", *headers))
        headers[name] = spliced(draw, headers[name], _WORDS)
    ttl_s = choices.of(_TTL_S, 0)
    sent = {name: value.encode("utf-8", "surrogateescape") for name, value in headers.items()}
    target = path.encode("utf-8", "surrogateescape")
    number = _C[ttl_s].authenticate(method, target, sent, now_s)
    must(number >= 0 or choices.odd, "what a client sends is not proved")
    if number < 0:
        return
    must(choices.odd or _NAMES[number] == _OWNERS[key], "a request is taken for another tenant's")
    for fraction in (0.0, 0.999):
        _now = now_s + fraction
        identity = None
        with refusals():
            identity = _PYTHON[ttl_s].authenticate(Request(method, path, "", Headers(headers.items())))
        must(identity is not None, "a request is proved that Python refuses")
        assert identity is not None
        must(identity.tenant.name == _NAMES[number], "a request is proved for another tenant than Python has it for")
        must(
            method != "PUT" or identity.payload is UNSIGNED, "an upload is proved whose body is to be held to something"
        )


_BYTES = tuple(word.encode() for word in _WORDS)
TARGETS = (
    (
        Target("native-signed", 80_000, check_signed, words=_BYTES),
        Target("native-tokens", 40_000, check_tokens, words=_BYTES),
    )
    if NATIVE
    else ()
)
