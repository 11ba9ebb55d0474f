"""What a POST form says about the signature of its policy: parsed, but not yet believed.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-authentication-HTTPPOST.html
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import NamedTuple

from kvgate.auth import sigv2
from kvgate.auth.claim import USE_V4, parse_amz_date, parse_credential
from kvgate.auth.sigv4 import ALGORITHM, Scope, signing_key
from kvgate.errors import AccessDenied, InvalidArgument, MalformedAuthorization

_V4 = ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")
_V2 = ("awsaccesskeyid", "signature")


class FormClaim(NamedTuple):
    """A signature of a policy, both as the form has them.

    scope, signed_at: None under Signature Version 2
    """

    access_key: str
    policy: str
    signature: str
    scope: Scope | None = None
    signed_at: float | None = None

    def matches(self, secret_key: str) -> bool:
        """Whether the signature is what the secret gives for the policy."""
        text = self.policy.encode()
        if self.scope is None:
            expected = sigv2.sign(secret_key, text)
        else:
            expected = hmac.digest(signing_key(secret_key, self.scope), text, "sha256").hex().encode()
        return hmac.compare_digest(expected, self.signature.encode())


def parse_form_claim(fields: Mapping[str, str], *, accept_v2: bool) -> FormClaim:
    """The claim that the fields of a form make, by lower-case name.

    Raises AccessDenied when they make none, InvalidArgument when a field is missing, or MalformedAuthorization.
    """
    v4 = any(name in fields for name in _V4)
    names = _V4 if v4 else _V2
    if not any(name in fields for name in ("policy", *names)):
        raise AccessDenied("the form is not signed: it has no policy")
    if v4 and any(name in fields for name in _V2):
        raise MalformedAuthorization("the form is signed by Signature Version 2 and 4; one of them must go")
    if not v4 and not accept_v2:
        raise MalformedAuthorization(f"the form is not signed by Signature Version 4; {USE_V4}")
    for name in ("policy", *names):
        if not fields.get(name):
            raise InvalidArgument(f"Bucket POST must contain a field named '{name}', before the file")
    if "x-amz-security-token" in fields:
        raise MalformedAuthorization("temporary credentials are not issued here; sign without a session token")
    if not v4:
        return FormClaim(fields["awsaccesskeyid"], fields["policy"], fields["signature"])
    if fields["x-amz-algorithm"] != ALGORITHM:
        raise MalformedAuthorization(f"the form field x-amz-algorithm must be {ALGORITHM}")
    access_key, scope = parse_credential(fields["x-amz-credential"])
    amz_date = fields["x-amz-date"]
    signed_at = parse_amz_date(amz_date)
    if scope.date != amz_date[:8]:
        raise MalformedAuthorization(f"the credential is for {scope.date}, the form of {amz_date[:8]}")
    return FormClaim(access_key, fields["policy"], fields["x-amz-signature"], scope, signed_at)
