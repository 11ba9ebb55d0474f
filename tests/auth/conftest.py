"""One tenant, an authenticator on a clock that the tests set, and botocore as the signing client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import settings

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.tenants import AccessKeyConfig, TenantConfig, Tenants
from kvgate.config import Secret
from kvgate.messages import Headers, Request

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = "127.0.0.1:9000"

settings.register_profile("kvgate", deadline=None)  # the machine may be busy
settings.load_profile("kvgate")


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Begins at the time that botocore signs at."""
    return Clock(time.time())


@pytest.fixture
def authenticator(clock: Clock) -> Authenticator:
    keys = (AccessKeyConfig(ACCESS_KEY, Secret(SECRET_KEY)), AccessKeyConfig("second-key", Secret("second-secret-key")))
    return Authenticator(Tenants({"acme": TenantConfig(keys)}), clock)


Signer = Callable[..., Request]


@pytest.fixture
def botocore_signed() -> Signer:
    """A request as botocore signs it and urllib3 sends it: in its headers, or presigned when `expires` is given."""

    def sign(
        method: str = "GET",
        target: str = "/bucket/key",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        expires: int | None = None,
        unsigned: bool = False,
        region: str = "us-east-1",
        secret_key: str = SECRET_KEY,
        access_key: str = ACCESS_KEY,
        service: str = "s3",
    ) -> Request:
        request = AWSRequest(method, f"http://{HOST}{target}", headers or {}, body)
        request.context["client_config"] = Config(s3={"payload_signing_enabled": not unsigned})
        credentials = Credentials(access_key, secret_key)
        if expires is None:
            S3SigV4Auth(credentials, service, region).add_auth(request)
        else:
            S3SigV4QueryAuth(credentials, service, region, expires).add_auth(request)
        split = urlsplit(request.url)
        sent = [(name, value) for name, value in request.headers.items() if name.lower() != "host"]
        return Request(method, split.path, split.query, Headers([("host", HOST), *sent]))

    return sign
