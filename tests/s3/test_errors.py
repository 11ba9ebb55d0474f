from __future__ import annotations

import inspect
import logging
import xml.etree.ElementTree as ET

import pytest

from kvgate import errors
from kvgate.error_table import INTERNAL, TABLE, row_of
from kvgate.s3.errors import error_response

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.KVGateError)]

INTERNAL_DEFECTS = {
    errors.KVGateError,
    errors.ConfigError,
    errors.LeaseReleased,
    errors.NotInTier,
    errors.CorruptCopy,
}
"""What an operation lets out only by a defect: the caller is told nothing of it."""

ELSEWHERE = {errors.UnsupportedModel, errors.GatewayError, errors.InvalidFrame, errors.NotFinite}
"""Raised by the client and the adapters only."""


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_that_can_come_here_has_a_row(cls: type[errors.KVGateError]) -> None:
    if cls in INTERNAL_DEFECTS or issubclass(cls, tuple(ELSEWHERE)):
        assert row_of(cls.__new__(cls)) is INTERNAL
    else:
        assert any(base in TABLE for base in cls.__mro__)


def test_what_a_tier_says_is_not_for_its_clients() -> None:
    away = errors.TierAway("redis at 10.0.0.5:6379 is not reached")
    status, headers, fields = respond(away)
    assert (status, fields["Code"], headers["Retry-After"]) == (503, "ServiceUnavailable", "1")
    assert "10.0.0.5" not in str(fields)


def respond(error: Exception, method: str = "GET") -> tuple[int, dict[str, str], dict[str, str | None]]:
    response = error_response(error, method=method, resource="/b/<k>", request_id="id-1")
    assert isinstance(response.body, bytes)
    fields = {child.tag: child.text for child in ET.fromstring(response.body)} if response.body else {}
    return response.status, response.headers, fields


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.NoSuchKey("k"), 404, "NoSuchKey"),
        (errors.NoSuchBucket("b"), 404, "NoSuchBucket"),
        (errors.KeyTooLong("k"), 400, "KeyTooLongError"),
        (errors.InvalidKey("k"), 400, "InvalidArgument"),
        (errors.SignatureMismatch("s"), 403, "SignatureDoesNotMatch"),
        (errors.AccessDenied("s"), 403, "AccessDenied"),
        (errors.UnsupportedOperation("u"), 501, "NotImplemented"),
        (errors.LengthRequired("l"), 411, "MissingContentLength"),
        (errors.ImmutableConflict("i"), 409, "ImmutableConflict"),
        (errors.QuotaExceeded("q"), 403, "QuotaExceeded"),
    ],
)
def test_errors_become_their_code_and_status(error: Exception, status: int, code: str) -> None:
    found, headers, fields = respond(error)
    assert found == status
    assert fields == {"Code": code, "Message": str(error), "Resource": "/b/<k>", "RequestId": "id-1"}
    assert headers["Content-Type"] == "application/xml"


def test_the_most_derived_class_wins() -> None:
    class Special(errors.ClockSkew):
        pass

    assert row_of(Special()).code == "RequestTimeTooSkewed"


def test_an_unknown_error_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise RuntimeError("the secret cause")
    except RuntimeError as error:
        with caplog.at_level(logging.ERROR):
            status, _, fields = respond(error)
    assert status == 500
    assert fields["Code"] == "InternalError"
    assert "secret" not in str(fields)
    assert "the secret cause" in caplog.text
    assert "Traceback" in caplog.text
    assert "id-1" in caplog.text


@pytest.mark.parametrize("error", [errors.Overloaded("o"), errors.StoreFull("s"), errors.ArenaFull("a")])
def test_overload_says_when_to_come_back(error: Exception) -> None:
    status, headers, fields = respond(error)
    assert (status, headers["Retry-After"], fields["Code"]) == (503, "1", "SlowDown")


def test_an_invalid_range_tells_the_size() -> None:
    status, headers, fields = respond(errors.InvalidRange(17))
    assert (status, headers["Content-Range"], fields["ActualObjectSize"]) == (416, "bytes */17", "17")


def test_a_failed_precondition_is_named() -> None:
    assert respond(errors.PreconditionFailed("If-Match"))[2]["Condition"] == "If-Match"


def test_what_xml_cannot_carry_leaves_the_document_readable() -> None:
    response = error_response(
        errors.InvalidRequest("odd \x01"), method="GET", resource="/b/\udcff\ufffe", request_id="id-1"
    )
    assert isinstance(response.body, bytes)
    fields = {child.tag: child.text for child in ET.fromstring(response.body)}
    assert (fields["Message"], fields["Resource"]) == ("odd \ufffd", "/b/\ufffd\ufffd")


def test_head_and_not_modified_have_no_body() -> None:
    assert respond(errors.NoSuchKey("k"), "HEAD")[2] == {}
    status, _, fields = respond(errors.NotModified("n"))
    assert (status, fields) == (304, {})
