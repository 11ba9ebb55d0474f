"""Canned ACLs: who besides the owner may read an object or list a bucket.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/acl-overview.html#canned-acl
"""

from __future__ import annotations

from kvgate.errors import InvalidArgument, UnsupportedOperation

PRIVATE = "private"
PUBLIC_READ = "public-read"
AUTHENTICATED_READ = "authenticated-read"

READ_ACLS = (PRIVATE, PUBLIC_READ, AUTHENTICATED_READ, "bucket-owner-read", "bucket-owner-full-control")
"""Those that are offered. Only the owner of a bucket writes into it, so the last two grant nobody else anything."""

_WRITE_ACLS = ("public-read-write", "aws-exec-read", "log-delivery-write")


def parse_canned_acl(value: str) -> str:
    """The canned ACL that an `x-amz-acl` header names, one of READ_ACLS.

    Raises UnsupportedOperation for another one of S3, InvalidArgument for what is none.
    """
    if value in READ_ACLS:
        return value
    accepted = f"accepted are {', '.join(READ_ACLS)}"
    if value in _WRITE_ACLS:
        raise UnsupportedOperation(f"the canned ACL {value} is not offered; {accepted}")
    raise InvalidArgument(f"{value[:64]!r} is not a canned ACL; {accepted}")


def grants_read(acl: str, caller: str | None) -> bool:
    """Whether an ACL of READ_ACLS lets a caller who is not the owner read: a tenant, or None for an unsigned one."""
    return acl == PUBLIC_READ or (acl == AUTHENTICATED_READ and caller is not None)
