from __future__ import annotations

import xml.etree.ElementTree as ET

import botocore.session
import pytest
from botocore.parsers import create_parser

from kvgate.auth.acl import READ_ACLS
from kvgate.errors import MalformedXML, UnsupportedOperation
from kvgate.s3.acl_xml import access_control_policy, parse_access_control_policy
from kvgate.s3.xml import document

ALL = "http://acs.amazonaws.com/groups/global/AllUsers"
AUTHENTICATED = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
OWNER = ("CanonicalUser", "ID", "acme", "FULL_CONTROL")


def render(acl: str) -> bytes:
    return document("AccessControlPolicy", access_control_policy("acme", acl))


def policy(*grants: tuple[str, str, str, str], owner: str = "<Owner><ID>acme</ID></Owner>") -> bytes:
    items = "".join(
        f'<Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="{kind}">'
        f"<{tag}>{grantee}</{tag}></Grantee><Permission>{permission}</Permission></Grant>"
        for kind, tag, grantee, permission in grants
    )
    inside = f"{owner}<AccessControlList>{items}</AccessControlList>"
    return (
        f'<AccessControlPolicy xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</AccessControlPolicy>'.encode()
    )


@pytest.mark.parametrize("acl", READ_ACLS)
def test_a_document_leads_back_to_an_equivalent_acl(acl: str) -> None:
    expected = "private" if acl.startswith("bucket-owner") else acl
    assert parse_access_control_policy(render(acl), "acme") == expected


@pytest.mark.parametrize(
    ("acl", "group"),
    [
        ("private", None),
        ("public-read", ALL),
        ("authenticated-read", AUTHENTICATED),
        ("bucket-owner-read", None),
        ("bucket-owner-full-control", None),
    ],
)
def test_botocore_reads_the_grants(acl: str, group: str | None) -> None:
    model = botocore.session.get_session().get_service_model("s3").operation_model("GetObjectAcl")
    answer = {"status_code": 200, "headers": {}, "body": render(acl)}
    found = create_parser("rest-xml").parse(answer, model.output_shape)
    user = {"ID": "acme", "DisplayName": "acme"}
    assert found["Owner"] == user
    grants = [{"Grantee": {"Type": "CanonicalUser"} | user, "Permission": "FULL_CONTROL"}]
    if group:
        grants.append({"Grantee": {"Type": "Group", "URI": group}, "Permission": "READ"})
    assert found["Grants"] == grants


def test_a_grantee_has_the_type_that_s3_gives_it() -> None:
    grantees = ET.fromstring(render("public-read")).iter("{http://s3.amazonaws.com/doc/2006-03-01/}Grantee")
    types = [grantee.get("{http://www.w3.org/2001/XMLSchema-instance}type") for grantee in grantees]
    assert types == ["CanonicalUser", "Group"]


@pytest.mark.parametrize(
    ("grants", "acl"),
    [
        ([OWNER], "private"),
        ([OWNER, OWNER], "private"),
        ([("Group", "URI", ALL, "READ"), OWNER], "public-read"),
        ([OWNER, ("Group", "URI", f" {AUTHENTICATED}\n", "READ")], "authenticated-read"),
        ([OWNER, ("Group", "URI", AUTHENTICATED, "READ"), ("Group", "URI", ALL, "READ")], "public-read"),
    ],
)
def test_grants_that_a_canned_acl_has(grants: list[tuple[str, str, str, str]], acl: str) -> None:
    assert parse_access_control_policy(policy(*grants), "acme") == acl
    assert parse_access_control_policy(policy(*grants, owner=""), "acme") == acl


@pytest.mark.parametrize(
    ("grants", "named"),
    [
        ([], "FULL_CONTROL"),
        ([("Group", "URI", ALL, "READ")], "FULL_CONTROL"),
        ([("CanonicalUser", "ID", "acme", "READ")], "'READ' to 'acme'"),
        ([OWNER, ("Group", "URI", ALL, "WRITE")], "'WRITE' to"),
        ([OWNER, ("Group", "URI", ALL, "FULL_CONTROL")], "'FULL_CONTROL' to"),
        ([OWNER, ("Group", "URI", ALL, "READ_ACP")], "'READ_ACP' to"),
        ([OWNER, ("Group", "URI", "http://acs.amazonaws.com/groups/s3/LogDelivery", "READ")], "LogDelivery"),
        ([OWNER, ("CanonicalUser", "ID", "beta", "READ")], "'READ' to 'beta'"),
        ([OWNER, ("Group", "URI", "acme", "FULL_CONTROL")], "to 'acme'"),
        ([OWNER, ("CanonicalUser", "ID", ALL, "READ")], "AllUsers"),
        ([OWNER, ("AmazonCustomerByEmail", "EmailAddress", "a@b", "READ")], "<EmailAddress>"),
    ],
)
def test_other_grants_are_not_offered(grants: list[tuple[str, str, str, str]], named: str) -> None:
    with pytest.raises(UnsupportedOperation, match=named):
        parse_access_control_policy(policy(*grants), "acme")


def test_another_owner_is_not_offered() -> None:
    with pytest.raises(UnsupportedOperation, match="Owner"):
        parse_access_control_policy(policy(OWNER, owner="<Owner><ID>beta</ID></Owner>"), "acme")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<AccessControlPolicy/>",
        policy(OWNER, owner="<Owner/>"),
        policy(OWNER, owner="<Other/>"),
        policy(OWNER).replace(b"<Permission>FULL_CONTROL</Permission>", b""),
        policy(OWNER).replace(b"<ID>acme</ID></Grantee>", b"</Grantee>"),
        policy(OWNER).replace(b"</ID></Grantee>", b"</ID><URI>x</URI></Grantee>"),
        policy(OWNER).replace(b"</Grant>", b"<Until>x</Until></Grant>"),
        policy(OWNER).replace(b"Grant>", b"Deny>"),
    ],
)
def test_other_documents_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedXML):
        parse_access_control_policy(body, "acme")
