from __future__ import annotations

import pytest

from kvgate.auth.acl import READ_ACLS, grants_read, parse_canned_acl
from kvgate.errors import InvalidArgument, UnsupportedOperation


@pytest.mark.parametrize(
    ("acl", "anyone", "tenant"),
    [
        ("private", False, False),
        ("public-read", True, True),
        ("authenticated-read", False, True),
        ("bucket-owner-read", False, False),
        ("bucket-owner-full-control", False, False),
    ],
)
def test_who_may_read(acl: str, anyone: bool, tenant: bool) -> None:
    assert parse_canned_acl(acl) == acl
    assert grants_read(acl, None) is anyone
    assert grants_read(acl, "beta") is tenant


def test_every_acl_that_is_offered_is_named_where_another_is_refused() -> None:
    for acl in ("public-read-write", "aws-exec-read", "log-delivery-write"):
        with pytest.raises(UnsupportedOperation) as caught:
            parse_canned_acl(acl)
        assert all(name in str(caught.value) for name in (acl, *READ_ACLS))


@pytest.mark.parametrize("value", ["", "public", "Private", "private ", "public-read,private", "x" * 5000])
def test_what_is_no_acl_of_s3_is_an_invalid_argument(value: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_canned_acl(value)
    assert not grants_read(value, "beta")
