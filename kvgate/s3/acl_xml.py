"""Canned ACLs as the lists of grants that S3 reads and writes.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAcl.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from kvgate.auth.acl import AUTHENTICATED_READ, PRIVATE, PUBLIC_READ
from kvgate.errors import MalformedXML, UnsupportedOperation
from kvgate.s3.elements import Fields
from kvgate.s3.listing import owner_entry
from kvgate.s3.xml import Children, Tag, parse

MAX_BODY_NBYTES = 64 << 10

_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_GROUPS = {
    "http://acs.amazonaws.com/groups/global/AllUsers": PUBLIC_READ,
    "http://acs.amazonaws.com/groups/global/AuthenticatedUsers": AUTHENTICATED_READ,
}
_ACCEPTED = "accepted are FULL_CONTROL for the owner, and READ for the group AllUsers or AuthenticatedUsers"


def access_control_policy(owner: str, acl: str) -> Children:
    """The children of the AccessControlPolicy document of an ACL, for `kvgate.s3.xml.document`."""
    grants: list[tuple[str, Children]] = [
        _grant("CanonicalUser", [("ID", owner), ("DisplayName", owner)], "FULL_CONTROL")
    ]
    grants += [_grant("Group", [("URI", uri)], "READ") for uri, granting in _GROUPS.items() if granting == acl]
    return [owner_entry(owner), ("AccessControlList", grants)]


def parse_access_control_policy(body: bytes, owner: str) -> str:
    """The canned ACL that an AccessControlPolicy document of this owner is equivalent to.

    Raises MalformedXML, or UnsupportedOperation for grants that no canned ACL for reading has.
    """
    root = Fields(parse(body, "AccessControlPolicy"), once=["Owner", "AccessControlList"])
    if "Owner" in root and Fields(root.one("Owner"), once=["ID", "DisplayName"]).word("ID") != owner:
        raise UnsupportedOperation("the Owner in an AccessControlPolicy must be the owner there is")
    grants = Fields(root.one("AccessControlList"), many=["Grant"]).all("Grant")
    granted = {_parse_grant(grant, owner) for grant in grants}
    if PRIVATE not in granted:
        raise UnsupportedOperation(f"the owner cannot be left without FULL_CONTROL; {_ACCEPTED}")
    return next(acl for acl in (PUBLIC_READ, AUTHENTICATED_READ, PRIVATE) if acl in granted)


def _grant(kind: str, grantee: Children, permission: str) -> tuple[str, Children]:
    tag = Tag("Grantee", {"xmlns:xsi": _XSI, "xsi:type": kind})
    return ("Grant", [(tag, grantee), ("Permission", permission)])


def _parse_grant(element: ET.Element, owner: str) -> str:
    """The canned ACL that consists of this grant, and of the owner's."""
    grant = Fields(element, once=["Grantee", "Permission"])
    grantee = Fields(grant.one("Grantee"), once=["ID", "DisplayName", "URI"], unsupported=["EmailAddress"])
    permission = grant.word("Permission")
    if ("ID" in grantee) is ("URI" in grantee):
        raise MalformedXML("a Grantee needs an ID or a URI")
    if "ID" in grantee and grantee.word("ID") == owner and permission == "FULL_CONTROL":
        return PRIVATE
    if "URI" in grantee and grantee.word("URI") in _GROUPS and permission == "READ":
        return _GROUPS[grantee.word("URI")]
    raise UnsupportedOperation(
        f"the grant of {permission[:64]!r} to {grantee.word('ID' if 'ID' in grantee else 'URI')[:160]!r} is not "
        f"offered; {_ACCEPTED}"
    )
