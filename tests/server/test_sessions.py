"""Session tokens at a running gateway: as good as the signature that they were given for, and no better."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvgate.auth import sigv4
from kvgate.client.aio import AsyncClient
from kvgate.client.sync import Client
from kvgate.errors import GatewayError
from tests.gateways import ALPHA, BETA, Credential, RunningGateway, default_config
from tests.wire import send

SESSION = "/_kv/v1/session"
OBJECT = "/alpha-bucket/object"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("sessions")
    gateway = RunningGateway(folder, default_config(folder)).start()
    with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key) as client:
        client.put("alpha-bucket", "object", b"alpha's own")
    yield gateway
    gateway.kill()


def token_of(gateway: RunningGateway, credential: Credential = ALPHA, ttl_s: float = 60) -> str:
    body = json.dumps({"ttl_s": ttl_s}).encode()
    headers = {"content-length": str(len(body)), "content-type": "application/json"}
    signing = sigv4.Credential(credential.access_key, credential.secret_key)
    status, _, answer = send(gateway, "POST", SESSION, headers, body, credential=signing)
    assert status == 200, answer
    return str(json.loads(answer)["token"])


def ask(
    gateway: RunningGateway, method: str, path: str, token: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {**sent, "authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_token_reads_writes_and_lists_what_its_tenant_may(opened: RunningGateway) -> None:
    token = token_of(opened)
    assert ask(opened, "PUT", "/alpha-bucket/new", token, b"body")[0] == 200
    assert ask(opened, "GET", "/alpha-bucket/new", token) == (200, b"body")
    assert ask(opened, "HEAD", "/alpha-bucket/new", token)[0] == 200
    assert b"<Key>new</Key>" in ask(opened, "GET", "/alpha-bucket?list-type=2", token)[1]
    assert ask(opened, "DELETE", "/alpha-bucket/new", token)[0] == 204


def test_body_must_have_the_hash_that_it_is_said_to_have(opened: RunningGateway) -> None:
    status, body = ask(opened, "PUT", OBJECT, token_of(opened), b"body", x_amz_content_sha256=sigv4.EMPTY_SHA256)
    assert status == 400
    assert b"<Code>XAmzContentSHA256Mismatch</Code>" in body


def test_token_of_another_tenant_sees_nothing(opened: RunningGateway) -> None:
    token = token_of(opened, BETA)
    assert ask(opened, "GET", OBJECT, token)[0] == 404
    assert ask(opened, "GET", "/alpha_alpha-bucket/object", token)[0] == 403
    assert b"alpha" not in ask(opened, "GET", "/", token)[1].replace(b"alpha-bucket", b"")


def test_bucket_policy_holds_for_a_token_as_for_a_signature(opened: RunningGateway) -> None:
    statement = {"Principal": {"AWS": "*"}, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::alpha-bucket/*"}
    shared, denied = (
        {"Version": "2012-10-17", "Statement": [{"Effect": effect, **statement}]} for effect in ("Allow", "Deny")
    )
    own, other = token_of(opened), token_of(opened, BETA)

    def set_policy(document: dict[str, Any]) -> None:
        assert ask(opened, "PUT", "/alpha-bucket?policy", own, json.dumps(document).encode())[0] == 204

    try:
        set_policy(shared)
        assert ask(opened, "GET", "/alpha_alpha-bucket/object", other) == (200, b"alpha's own")
        assert ask(opened, "PUT", "/alpha_alpha-bucket/object", other, b"mine")[0] == 403
        set_policy(denied)
        for token in (own, other):
            path = OBJECT if token is own else "/alpha_alpha-bucket/object"
            assert ask(opened, "GET", path, token)[0] == 403
    finally:
        assert ask(opened, "DELETE", "/alpha-bucket?policy", own)[0] == 204
    assert ask(opened, "GET", OBJECT, own)[0] == 200


def test_refusals_are_in_the_words_of_s3(opened: RunningGateway) -> None:
    token = token_of(opened)
    status, body = ask(opened, "GET", OBJECT, token[:-1] + ("0" if token[-1] != "0" else "1"))
    assert status == 400
    assert b"<Code>InvalidToken</Code>" in body
    assert ask(opened, "GET", f"{OBJECT}?X-Amz-Signature=0", token)[0] == 400
    assert ask(opened, "POST", SESSION, token, b"{}")[0] == 403


def test_token_is_in_no_log(opened: RunningGateway) -> None:
    token = token_of(opened)
    ask(opened, "GET", OBJECT, token)
    ask(opened, "GET", OBJECT, token + "0")
    assert token.rpartition(".")[2] not in opened.log


def test_rotated_credential_ends_its_tokens_and_a_restart_alone_does_not(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    kept, rotated = token_of(gateway), token_of(gateway, BETA)
    gateway.config["tenants"]["beta"]["access_keys"][0]["secret_key"] = "beta-secret-that-is-new"
    gateway.restart()
    assert ask(gateway, "GET", "/alpha-bucket", kept)[0] == 200
    status, body = ask(gateway, "GET", "/beta-bucket", rotated)
    assert status == 400
    assert b"<Code>InvalidToken</Code>" in body


# --- the clients ------------------------------------------------------------------------------------------------------


def test_client_asks_for_one_token_and_uses_it(opened: RunningGateway) -> None:
    def sessions() -> float:
        return opened.metrics().get('kvgate_requests_total{operation="Session",status="200"}', 0)

    before = sessions()
    with Client(opened.url, ALPHA.access_key, ALPHA.secret_key, use_session=True) as client:
        for _ in range(3):
            assert client.get("alpha-bucket", "object").body == b"alpha's own"
        assert client.head("alpha-bucket", "object").nbytes == 11
        assert client.tenant().name == "alpha"
        client.put("alpha-bucket", "other", b"x")
        client.delete("alpha-bucket", "other")
    assert sessions() == before + 1

    async def run() -> None:
        async with AsyncClient(opened.url, ALPHA.access_key, ALPHA.secret_key, use_session=True) as client:
            for _ in range(3):
                assert (await client.get("alpha-bucket", "object")).body == b"alpha's own"
            await client.put("alpha-bucket", "other", b"x")
            await client.delete("alpha-bucket", "other")

    asyncio.run(run())
    assert sessions() == before + 2


def test_clients_sign_again_where_tokens_have_been_turned_off(gateway: RunningGateway) -> None:
    async def head(client: AsyncClient) -> str:
        return (await client.head("alpha-bucket", "object")).etag

    async def run() -> None:
        async with AsyncClient(gateway.url, ALPHA.access_key, ALPHA.secret_key, use_session=True) as other:
            with Client(gateway.url, ALPHA.access_key, ALPHA.secret_key, use_session=True) as client:
                etag = client.put("alpha-bucket", "object", b"body")
                assert await head(other) == etag
                gateway.config["listen"]["session_ttl"] = 0
                await asyncio.to_thread(gateway.restart)
                for _ in range(2):
                    assert client.get("alpha-bucket", "object").body == b"body"
                    assert await head(other) == etag
                    client.put("alpha-bucket", "new", b"", if_none_match=True)
                    client.delete("alpha-bucket", "new")

    asyncio.run(run())


def test_client_with_a_wrong_secret_is_told_so(opened: RunningGateway) -> None:
    with Client(opened.url, ALPHA.access_key, "another-secret-0123", use_session=True) as client:
        with pytest.raises(GatewayError) as refusal:
            client.get("alpha-bucket", "object")
        assert refusal.value.code == "SignatureDoesNotMatch"
