from __future__ import annotations

import pytest

from kvgate.auth.identity import UnsignedPayload
from kvgate.errors import InvalidArgument, InvalidRequest, MalformedXML, UnsupportedOperation
from kvgate.messages import Headers, Request
from kvgate.s3.acl_request import PutAclInput
from kvgate.s3.acl_xml import access_control_policy
from kvgate.s3.call import Call
from kvgate.s3.target import parse_target
from kvgate.s3.xml import document
from tests.s3.conftest import WireBody

PUBLIC = document("AccessControlPolicy", access_control_policy("alpha", "public-read"))


def parse(body: bytes = b"", **headers: str) -> PutAclInput:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    length = [("content-length", str(len(body)))]
    request = Request("PUT", "/b/k", "acl", Headers(named + length), WireBody([body]))
    return PutAclInput.parse(Call(request, parse_target("/b/k", "acl"), UnsignedPayload()))


async def test_a_header_names_an_acl() -> None:
    assert await parse(x_amz_acl="authenticated-read").acl("alpha") == "authenticated-read"
    assert await parse(x_amz_acl="private").acl("alpha") == "private"
    with pytest.raises(UnsupportedOperation):
        parse(x_amz_acl="public-read-write")
    with pytest.raises(InvalidArgument):
        parse(x_amz_acl="open")


async def test_a_body_lists_grants() -> None:
    assert await parse(PUBLIC).acl("alpha") == "public-read"
    with pytest.raises(UnsupportedOperation):
        await parse(PUBLIC).acl("beta")
    with pytest.raises(MalformedXML):
        await parse(b"<Tagging/>").acl("alpha")


async def test_one_of_both_it_has_to_be() -> None:
    for wrong in (parse(), parse(PUBLIC, x_amz_acl="private")):
        with pytest.raises(InvalidRequest):
            await wrong.acl("alpha")
