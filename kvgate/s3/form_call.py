"""The call that a POST form stands for: its fields are headers, and its file is the body."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.claim import is_signed
from kvgate.auth.post_policy import PostPolicy
from kvgate.auth.tenants import Tenant
from kvgate.errors import InvalidArgument, InvalidRequest, ObjectTooLarge, UnsupportedOperation, UploadTooSmall
from kvgate.messages import Headers, RequestBody
from kvgate.s3.call import Call
from kvgate.s3.checksums import HEADER_PREFIX
from kvgate.s3.form import Form
from kvgate.s3.representation import ACL, TAGGING, USER_PREFIX
from kvgate.s3.tagging import encode_tags, parse_tagging

STATUS, REDIRECT = "success_action_status", "success_action_redirect"
"""Fields that say how to answer."""

_OLD_REDIRECT = "redirect"
_KEPT = frozenset(
    {
        *("cache-control", "content-disposition", "content-encoding", "content-language", "content-md5"),
        *("content-type", "expires", STATUS, REDIRECT),
    }
)
_KEPT_PREFIXES = (HEADER_PREFIX, USER_PREFIX)
_SIGNATURE = frozenset({"x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"})
_STORAGE_CLASS = ("x-amz-storage-class", "STANDARD")
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


async def open_form(authenticator: Authenticator, call: Call) -> tuple[Tenant, Call]:
    """For whom a form speaks, and the call that it stands for, which its policy allows.

    Reads as far as the file begins. Raises MalformedForm, InvalidRequest, UnsupportedOperation, IncompleteBody, and
    what Authenticator.authenticate_form and PostPolicy.check raise.
    """
    if is_signed(call.request):
        raise InvalidRequest("a form is signed by its policy; the Authorization header or presigned query must go")
    form = Form(call.request)
    await form.read_fields()
    tenant, policy = authenticator.authenticate_form(form.fields)
    policy.check(form.fields | {"bucket": call.bucket})
    if "key" not in form.fields:
        raise InvalidArgument("Bucket POST must contain a field named 'key', before the file")
    request = replace(call.request, headers=_headers(form.fields), body=_LimitedFile(form, policy))
    return tenant, call._replace(request=request, target=call.target._replace(key=form.fields["key"]))


class _LimitedFile:
    """The file of a form as a RequestBody, of no other length than its policy allows."""

    def __init__(self, file: RequestBody, policy: PostPolicy) -> None:
        self._file = file
        self._policy = policy
        self._received = 0

    async def readinto(self, view: memoryview) -> int:
        """See RequestBody. Raises ObjectTooLarge as soon as that is so, UploadTooSmall at the end."""
        received = await self._file.readinto(view)
        self._received += received
        most, least = self._policy.max_nbytes, self._policy.min_nbytes
        if most is not None and self._received > most:
            raise ObjectTooLarge(f"the file is over the {most} bytes that the policy of its form allows")
        if not received and self._received < least:
            raise UploadTooSmall(f"the file has {self._received} bytes; the policy of its form asks for {least}")
        return received


def _headers(fields: Mapping[str, str]) -> Headers:
    """The headers that fields stand for. Raises UnsupportedOperation, InvalidArgument, MalformedXML, InvalidTag."""
    headers: dict[str, str] = {}
    for name, value in fields.items():
        if name in _KEPT or name.startswith(_KEPT_PREFIXES):
            if not _HEADER_NAME.fullmatch(name):
                raise InvalidArgument(f"the form field {name[:64]!r} is not the name of a header")
            headers[name] = value
        elif name == "acl":
            headers[ACL] = value
        elif name == "tagging":
            headers[TAGGING] = encode_tags(parse_tagging(value.encode()))
        elif name == _OLD_REDIRECT:
            headers.setdefault(REDIRECT, value)
        elif name.startswith("x-amz-") and name not in _SIGNATURE and (name, value) != _STORAGE_CLASS:
            raise UnsupportedOperation(f"the form field {name[:64]} is not offered")
    headers["transfer-encoding"] = "chunked"  # only the end of a form tells how long its file is
    return Headers(headers.items())
