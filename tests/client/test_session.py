"""What a client does about its token, on a clock that the tests set."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvgate.client.session import SessionToken
from kvgate.client.values import Session
from kvgate.errors import GatewayError
from tests.client.peer import Peer

TOKEN = b"\x83\xa5token\xa3xyz\xa7expires\x01\xa9expires_s\xcd\x0e\x10"  # token: xyz, expires: 1, expires_s: 3600
MSGPACK = "content-type: application/msgpack"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def token(clock: Clock) -> SessionToken:
    return SessionToken(clock)


def test_one_is_asked_for_at_the_first_use(token: SessionToken) -> None:
    assert token.get() == ""
    assert token.begin() == 1000
    assert token.begin() is None
    token.adopt(Session("abc", 100.0), 1000)
    assert (token.get(), token.begin()) == ("abc", None)


def test_it_is_replaced_before_its_end_and_not_used_up_to_it(token: SessionToken, clock: Clock) -> None:
    token.adopt(Session("abc", 100.0), 1000)
    clock.now = 1069
    assert (token.get(), token.begin()) == ("abc", None)
    clock.now = 1071
    assert (token.get(), token.begin()) == ("abc", 1071)
    clock.now = 1089
    assert token.get() == "abc"
    clock.now = 1091
    assert token.get() == ""


def test_gateway_that_gives_none_is_asked_again_in_a_while(token: SessionToken, clock: Clock) -> None:
    token.begin()
    token.refused(GatewayError("off"))
    clock.now += 59
    assert token.begin() is None
    clock.now += 2
    assert token.begin() is not None


def test_dropped_token_is_used_no_more_and_a_newer_one_is_kept(token: SessionToken, clock: Clock) -> None:
    token.adopt(Session("abc", 1e6), 1000)
    token.drop("older")
    assert token.get() == "abc"
    token.drop("abc")
    assert token.get() == ""
    assert token.begin() is None
    clock.now += 6
    assert token.begin() is not None


def test_token_is_not_shown() -> None:
    assert "abc" not in repr(Session("abc", 1.0))


# --- against a peer ---------------------------------------------------------------------------------------------------


def gateway(answers: list[tuple[bytes, str, str]], seen: list[bytes]) -> Callable[[Peer], None]:
    """A behaviour: these answers (body, status, header), one a request; what was asked is added to `seen`."""

    def run(peer: Peer) -> None:
        while (head := peer.request()[0]) and answers:
            seen.append(head)
            body, status, header = answers.pop(0)
            peer.respond(body, *filter(None, [header]), status=status)

    return run


def test_calls_are_signed_where_the_gateway_gives_no_token(serve, client_of) -> None:
    for status in ("404 Not Found", "501 Not Implemented", "403 Forbidden"):
        seen: list[bytes] = []
        answers = [(b"", status, ""), (b"", "200 OK", ""), (b"", "200 OK", "")]
        client = client_of(serve(gateway(answers, seen)), use_session=True)
        client.head("bucket", "key")
        client.head("bucket", "key")
        assert [head.split(b" ")[1] for head in seen] == [b"/_kv/v1/session", b"/bucket/key", b"/bucket/key"]
        assert all(b"authorization: AWS4-HMAC-SHA256" in head for head in seen)


def test_calls_carry_the_token_and_nothing_that_is_signed(serve, client_of) -> None:
    seen: list[bytes] = []
    client = client_of(serve(gateway([(TOKEN, "200 OK", MSGPACK), (b"", "200 OK", "")], seen)), use_session=True)
    client.head("bucket", "key")
    assert b"authorization: Bearer xyz\r\n" in seen[1]
    assert b"x-amz-date" not in seen[1]
    assert "xyz" not in repr(client) + repr(vars(client))  # which no address in hex digits holds


def test_refused_token_is_dropped_and_the_call_is_signed(serve, client_of) -> None:
    refusal = b"<Error><Code>ExpiredToken</Code><Message>m</Message></Error>"
    seen: list[bytes] = []
    answers = [
        (TOKEN, "200 OK", MSGPACK),
        (refusal, "400 Bad Request", ""),
        (b"", "200 OK", 'etag: "e"'),
        (b"", "204 No Content", ""),
    ]
    client = client_of(serve(gateway(answers, seen)), use_session=True)
    assert client.put("bucket", "key", b"body", if_none_match=True) == "e"
    client.delete("bucket", "key")
    assert [b"Bearer" in head for head in seen] == [False, True, False, False]


def test_other_refusals_are_told_and_the_token_is_kept(serve, client_of) -> None:
    refusal = b"<Error><Code>InvalidChunk</Code><Message>m</Message></Error>"
    seen: list[bytes] = []
    answers = [(TOKEN, "200 OK", MSGPACK), (refusal, "400 Bad Request", ""), (b"", "200 OK", "")]
    client = client_of(serve(gateway(answers, seen)), use_session=True)
    with pytest.raises(GatewayError) as told:
        client.put("bucket", "key", b"body")
    assert told.value.code == "InvalidChunk"
    client.head("bucket", "key")
    assert [b"Bearer" in head for head in seen] == [False, True, True]


@pytest.mark.parametrize("text", [b"a b", b"a\r\nx: y", b"", b"\xc3\xa9"])
def test_token_that_no_header_can_carry_is_not_used(serve, client_of, text) -> None:
    body = b"\x82\xa5token" + bytes([0xA0 + len(text)]) + text + b"\xa9expires_s\x3c"
    seen: list[bytes] = []
    client = client_of(serve(gateway([(body, "200 OK", MSGPACK), (b"", "200 OK", "")], seen)), use_session=True)
    client.head("bucket", "key")
    assert b"AWS4-HMAC-SHA256" in seen[1]
