"""The calls under /_kv/v1/, in both encodings, as signed requests to the API over a real store."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
import yaml

from kvgate.auth.sigv4 import Credential, presign
from kvgate.chunk.space import Space
from kvgate.kvapi.routes import DOCUMENT, ROUTES
from kvgate.store.config import StoreConfig
from tests.client.chunks import SPACE
from tests.kvapi.conftest import SECRET

MATCH, RELEASE, SESSION, STATS, TENANT = (
    f"/_kv/v1/{name}" for name in ("match", "release", "session", "stats", "tenant")
)


def question(hashes: Any, **more: Any) -> dict[str, Any]:
    return {"bucket": "bucket", "space": SPACE.id, "hashes": hashes, **more}


# --- match and release ------------------------------------------------------------------------------------------------


async def test_match_finds_the_longest_prefix_in_every_form_of_hashes(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(3)
        asked = [*hashes[:2], bytes(32), hashes[2]]
        nbytes = 4096 + SPACE.layout.nbytes
        for packed, form in [
            (False, [chunk_hash.hex() for chunk_hash in asked]),
            (True, [chunk_hash.hex() for chunk_hash in asked]),
            (True, asked),
            (True, b"".join(asked)),
        ]:
            status, answer = await opened.ask(MATCH, question(form, lease_s=5), packed=packed)
            assert status == 200
            assert answer["matched"] == 2
            assert (answer["tiers"], answer["ranks"], answer["nbytes"]) == (["host"], [0, 0], [nbytes, nbytes])
            assert answer["expires_s"] == 5
            assert (await opened.ask(RELEASE, {"lease": answer["lease"]}, packed=packed)) == (200, {"released": True})


async def test_match_of_nothing_has_no_lease(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(1)
        for asked in (question([bytes(32).hex()]), question([]), question([hashes[0].hex()]) | {"space": "00" * 32}):
            status, answer = await opened.ask(MATCH, asked)
            assert (status, answer) == (
                200,
                {"matched": 0, "lease": None, "expires_s": 0.0, "tiers": ["host"], "ranks": [], "nbytes": []},
            )


async def test_lease_is_as_long_as_the_store_allows(open_api) -> None:
    async with open_api(store=StoreConfig(max_lease=60.0)) as opened:
        (chunk_hash,) = await opened.put_chunks(1)
        assert (await opened.ask(MATCH, question([chunk_hash.hex()])))[1]["expires_s"] == 30
        assert (await opened.ask(MATCH, question([chunk_hash.hex()], lease_s=10**9)))[1]["expires_s"] == 60


async def test_tenants_see_nothing_of_each_other(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(2)
        lease = (await opened.ask(MATCH, question([chunk_hash.hex() for chunk_hash in hashes])))[1]["lease"]
        asked = question([chunk_hash.hex() for chunk_hash in hashes])
        assert (await opened.ask(MATCH, asked, tenant="beta"))[1]["matched"] == 0
        foreign = await opened.ask(RELEASE, {"lease": lease}, tenant="beta")
        unknown = await opened.ask(RELEASE, {"lease": "0" * 32}, tenant="beta")
        assert foreign == unknown
        assert (foreign[0], foreign[1]["code"]) == (404, "NoSuchLease")
        assert (await opened.ask(RELEASE, {"lease": lease}))[0] == 200
        assert (await opened.ask(RELEASE, {"lease": lease}))[0] == 404


async def test_match_in_an_unknown_bucket_is_told(open_api) -> None:
    async with open_api() as opened:
        status, answer = await opened.ask(MATCH, question([]) | {"bucket": "elsewhere"})
        assert (status, answer["code"]) == (404, "NoSuchBucket")


async def test_too_many_leases_ask_to_slow_down(open_api) -> None:
    async with open_api(store=StoreConfig(max_leases=1)) as opened:
        (chunk_hash,) = await opened.put_chunks(1)
        asked = json.dumps(question([chunk_hash.hex()])).encode()
        assert (await opened.request("POST", MATCH, asked)).status == 200
        response = await opened.request("POST", MATCH, asked)
        assert (response.status, response.headers["Retry-After"]) == (503, "1")


# --- stats and tenant -------------------------------------------------------------------------------------------------


async def test_stats_are_the_tenants_own(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(2)
        await opened.ask(MATCH, question([hashes[0].hex(), bytes(32).hex()]))
        status, answer = await opened.ask(STATS)
        used = 2 * (4096 + SPACE.layout.nbytes) + len(SPACE.canonical_json())
        assert status == 200
        assert answer == {
            "objects": 3,
            "nbytes": used,
            "quota_nbytes": 100 << 20,
            "tiers": {
                "host": {
                    "objects": 3,
                    "nbytes": used,
                    "limit_nbytes": None,
                    "floor_nbytes": 0,
                    "weight": 1.0,
                    "fair_nbytes": opened.store.stats(opened.tenants["beta"]).tiers["host"].fair_nbytes,
                }
            },
            "leases": 1,
            "match_chunks_asked": 2,
            "match_chunks_found": 1,
            "rates": {"requests": None, "read_bytes": None, "write_bytes": None},
            "refused": dict.fromkeys(("requests", "read_bytes", "write_bytes", "quota", "tier_limit"), 0),
        }
        other = (await opened.ask(STATS, tenant="beta", packed=True))[1]
        assert (other["objects"], other["nbytes"], other["quota_nbytes"], other["leases"]) == (0, 0, None, 0)
        assert other["match_chunks_asked"] == 0


async def test_tenant_gives_the_salt_as_bytes_or_hex(open_api) -> None:
    async with open_api() as opened:
        salt = opened.tenants["alpha"].salt
        expected = {"tenant": "alpha", "quota_nbytes": 100 << 20, "buckets": ["bucket"]}
        ways = {"shm_socket": "", "unix_socket": ""}
        assert await opened.ask(TENANT) == (
            200,
            expected | {"salt": salt.hex(), "local": ways | {"boot_id": "00" * 16}},
        )
        assert await opened.ask(TENANT, packed=True) == (
            200,
            expected | {"salt": salt, "local": ways | {"boot_id": bytes(16)}},
        )


# --- sessions ---------------------------------------------------------------------------------------------------------


async def test_session_is_a_token_that_every_other_call_takes(open_api) -> None:
    async with open_api() as opened:
        before = int(time.time())
        status, session = await opened.ask(SESSION, {"ttl_s": 60})
        assert status == 200
        assert before + 59 <= session["expires"] <= before + 62
        assert 58 < session["expires_s"] <= 60
        bearer = {"authorization": f"Bearer {session['token']}"}
        response = await opened.request("GET", TENANT, headers=bearer, signed=False)
        assert (response.status, json.loads(response.body)["tenant"]) == (200, "alpha")
        hashes = await opened.put_chunks(1)
        asked = json.dumps(question([hashes[0].hex()])).encode()
        response = await opened.request("POST", MATCH, asked, bearer, signed=False)
        assert (response.status, json.loads(response.body)["matched"]) == (200, 1)


async def test_session_is_as_long_as_the_gateway_allows(open_api) -> None:
    async with open_api(session_ttl_s=100) as opened:
        assert 98 < (await opened.ask(SESSION, {"ttl_s": 1e9}, packed=True))[1]["expires_s"] <= 100
        assert 98 < (await opened.ask(SESSION, {}))[1]["expires_s"] <= 100
        status, answer = await opened.ask(SESSION, {"ttl_s": 0.5})
        assert (status, answer["code"]) == (400, "InvalidArgument")


async def test_sessions_can_be_off(open_api) -> None:
    async with open_api(session_ttl_s=0) as opened:
        status, answer = await opened.ask(SESSION, {})
        assert (status, answer["code"]) == (501, "NotImplemented")
        assert "listen.session_ttl" in answer["message"]


async def test_neither_a_token_nor_a_presigned_url_makes_a_session(open_api) -> None:
    async with open_api() as opened:
        token = (await opened.ask(SESSION, {}))[1]["token"]
        response = await opened.request("POST", SESSION, b"{}", {"authorization": f"Bearer {token}"}, signed=False)
        assert (response.status, json.loads(response.body)["code"]) == (403, "AccessDenied")
        url = presign(
            Credential("alpha-key", SECRET),
            "POST",
            SESSION,
            "",
            {"host": "gateway"},
            region="r",
            now=time.time(),
            expires_s=60,
        )
        response = await opened.request("POST", SESSION, b"{}", query=url, signed=False)
        assert (response.status, json.loads(response.body)["code"]) == (403, "AccessDenied")


async def test_bad_token_is_told_in_the_encoding_of_the_caller(open_api) -> None:
    async with open_api() as opened:
        for accept, unpack in (("application/json", json.loads), ("application/msgpack", msgpack.unpackb)):
            headers = {"authorization": "Bearer kvs1.1.YWxwaGEta2V5." + "0" * 64, "accept": accept}
            response = await opened.request("GET", STATS, headers=headers, signed=False)
            assert (response.status, unpack(response.body)["code"]) == (400, "InvalidToken")


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "accept", "expected"),
    [
        ("", "", "application/json"),
        ("application/json; charset=utf-8", "*/*", "application/json"),
        ("application/msgpack", "", "application/msgpack"),
        ("application/x-msgpack", "*/*", "application/msgpack"),
        ("application/msgpack", "application/json", "application/json"),
        ("application/json", "text/html, application/msgpack", "application/msgpack"),
        ("", "application/msgpack;q=0.5, application/json;q=0.9", "application/json"),
        ("", "application/msgpack;q=0", "application/json"),
        ("", "application/msgpack;q=x", "application/json"),
    ],
)
async def test_answer_is_in_the_encoding_that_is_preferred(open_api, content_type, accept, expected) -> None:
    async with open_api() as opened:
        headers = {"content-type": content_type, "accept": accept}
        response = await opened.request("GET", STATS, headers={name: value for name, value in headers.items() if value})
        assert (response.status, response.headers["Content-Type"]) == (200, expected)


async def test_errors_are_in_the_encoding_of_the_caller(open_api) -> None:
    async with open_api() as opened:
        response = await opened.request("POST", RELEASE, b"\x80", {"content-type": "application/msgpack"})
        assert response.status == 400
        assert msgpack.unpackb(response.body) == {
            "code": "InvalidArgument",
            "message": "lease: this field needs a value",
        }


BAD_BODIES: list[tuple[str, bytes, str]] = [
    ("application/json", b"", "bucket"),
    ("application/json", b"{", "not JSON"),
    ("application/json", b"[]", "one map"),
    ("application/json", b'{"bucket":"b","bucket":"b"}', "twice"),
    ("application/json", b'{"lease_s":NaN}', "NaN"),
    ("application/json", b"[" * 100_000, "nested"),
    ("application/json", b'{"bucket":"' + b"\xff" + b'"}', "UTF-8"),
    ("application/msgpack", b"\xc1", "msgpack"),
    ("application/msgpack", b"\x81", "msgpack"),
    ("application/msgpack", b"\x80\x80", "msgpack"),
    ("application/msgpack", b"\x91" * 100_000, "msgpack"),
    ("application/msgpack", b"\xdf\xff\xff\xff\xff", "max_map_len"),
    ("application/msgpack", b"\x81\xa6hashes\xdd\xff\xff\xff\xff", "max_array_len"),
    ("application/msgpack", b"\x81\xa6hashes\xc6\xff\xff\xff\xff", "msgpack"),
    ("application/msgpack", b"\x81\xa6bucket\xc7\x01\x05x", "max_ext_len"),
    ("application/msgpack", b"\x81\xa6bucket\xd6\xff\x00\x00\x00\x00", "max_ext_len"),
    ("application/msgpack", b"\x82\xa1a\x01\xa1a\x01", "twice"),
    ("application/msgpack", b"\x81\xc4\x01a\x01", "text keys"),
    ("application/msgpack", b"\x81\x01\x01", "msgpack"),
    ("application/msgpack", b"\x81\xa6bucket\xa1\xff", "msgpack"),
    ("text/plain", b"{}", "Content-Type"),
    ("application/x-www-form-urlencoded", b"{}", "Content-Type"),
]


@pytest.mark.parametrize(("content_type", "body", "named"), BAD_BODIES)
async def test_body_that_cannot_be_read_is_refused(open_api, content_type, body, named) -> None:
    async with open_api() as opened:
        headers = {"content-type": content_type, "accept": "application/json"}
        response = await opened.request("POST", MATCH, body, headers)
        answer = json.loads(response.body)
        assert response.status == 400
        assert answer["code"] in ("InvalidRequest", "InvalidArgument")
        assert named in answer["message"]


H = "00" * 32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bucket": ""}, "bucket: expected text"),
        ({"bucket": 5}, "bucket: expected text"),
        ({"bucket": "b" * 2000}, "bucket: expected text"),
        ({"bucket": None}, "bucket: this field needs a value"),
        ({"space": "00"}, "space: expected 64"),
        ({"space": "AB" * 32}, "space: expected 64"),
        ({"hashes": None}, "hashes: this field needs a value"),
        ({"hashes": H}, "hashes: expected a list"),
        ({"hashes": {}}, "hashes: expected a list"),
        ({"hashes": [H, H[:-1]]}, "hashes[1]: expected 32 bytes"),
        ({"hashes": [H, " " + H[1:]]}, "hashes[1]: expected 32 bytes"),
        ({"hashes": [1]}, "hashes[0]: expected 32 bytes"),
        ({"hashes": [[]]}, "hashes[0]: expected 32 bytes"),
        ({"hashes": [H] * 9}, "hashes: at most 8 hashes"),
        ({"lease_s": 0}, "lease_s: expected seconds"),
        ({"lease_s": -1}, "lease_s: expected seconds"),
        ({"lease_s": True}, "lease_s: expected seconds"),
        ({"lease_s": "30"}, "lease_s: expected seconds"),
        ({"lease_s": 10**400}, "lease_s: expected seconds"),
        ({"space": None, "sapce": H}, "'sapce': unknown field; did you mean 'space'?"),
        ({"leases": 3}, "'leases': unknown field; did you mean 'lease_s'?"),
        ({"zzzzzzz": 3}, "'zzzzzzz': unknown field; known: bucket, space, hashes, lease_s"),
    ],
)
async def test_field_that_is_wrong_is_named(open_api, change, named) -> None:
    async with open_api(max_hashes=8) as opened:
        status, answer = await opened.ask(MATCH, question([H]) | change)
        assert (status, answer["code"]) == (400, "InvalidArgument")
        assert named in answer["message"]


async def test_run_of_hashes_is_counted(open_api) -> None:
    async with open_api(max_hashes=8) as opened:
        assert (await opened.ask(MATCH, question(bytes(8 * 32)), packed=True))[0] == 200
        for run, named in [(bytes(9 * 32), "at most 8"), (bytes(33), "33 bytes in one run")]:
            status, answer = await opened.ask(MATCH, question(run), packed=True)
            assert status == 400
            assert named in answer["message"]


async def test_calls_without_fields_refuse_some(open_api) -> None:
    async with open_api() as opened:
        response = await opened.request("GET", STATS, b'{"tenant": "beta"}')
        assert (response.status, json.loads(response.body)["message"]) == (400, "'tenant': unknown field; known: none")


async def test_longest_match_is_answered_in_both_encodings(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(1)
        for packed in (False, True):
            form = [chunk_hash if packed else chunk_hash.hex() for chunk_hash in hashes * 65_536]
            status, answer = await opened.ask(MATCH, question(form), packed=packed)
            assert (status, answer["matched"], len(answer["nbytes"])) == (200, 65_536, 65_536)


# --- bodies and signatures --------------------------------------------------------------------------------------------


async def test_body_over_the_limit_is_refused(open_api) -> None:
    async with open_api(max_body=2048) as opened:
        for announced in (4096, 100):  # at its announcement; and while it comes, when the announcement is wrong
            response = await opened.request("POST", MATCH, bytes(4096), announced=announced)
            assert (response.status, json.loads(response.body)["code"]) == (400, "EntityTooLarge")


async def test_body_that_ends_early_is_refused(open_api) -> None:
    async with open_api() as opened:
        response = await opened.request("POST", MATCH, b"{}", announced=3)
        assert (response.status, json.loads(response.body)["code"]) == (400, "IncompleteBody")


@pytest.mark.parametrize("nbytes", [2, 200_000])
async def test_signed_body_must_have_its_hash(open_api, nbytes) -> None:
    async with open_api() as opened:
        body = b"{" + b" " * (nbytes - 2) + b"}"
        wrong = hashlib.sha256(b"something else").hexdigest()
        response = await opened.request("POST", MATCH, body, payload_hash=wrong)
        assert (response.status, json.loads(response.body)["code"]) == (400, "XAmzContentSHA256Mismatch")
        response = await opened.request("POST", MATCH, body, payload_hash="UNSIGNED-PAYLOAD")
        assert "bucket" in json.loads(response.body)["message"]


async def test_streaming_body_is_refused(open_api) -> None:
    async with open_api() as opened:
        for form in ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"):
            response = await opened.request("POST", MATCH, b"{}", payload_hash=form)
            assert (response.status, json.loads(response.body)["code"]) == (501, "NotImplemented")


async def test_calls_need_a_signature(open_api) -> None:
    async with open_api() as opened:
        for method, path in ROUTES:
            response = await opened.request(method, path, signed=False)
            assert (response.status, json.loads(response.body)["code"]) == (403, "AccessDenied")
        response = await opened.request("GET", STATS, tenant="nobody")
        assert (response.status, json.loads(response.body)["code"]) == (403, "InvalidAccessKeyId")


# --- routes and errors ------------------------------------------------------------------------------------------------


async def test_unknown_path_method_and_parameter_are_named(open_api) -> None:
    async with open_api() as opened:
        for method, path, query, status, named in [
            ("GET", "/_kv/v1/nothing", "", 501, "/_kv/v1/nothing"),
            ("GET", "/_kv/v2/match", "", 501, "/_kv/v2/match"),
            ("GET", MATCH, "", 405, "takes POST"),
            ("POST", DOCUMENT[1], "", 405, "takes GET"),
            ("GET", STATS, "tenant=beta", 501, "'tenant'"),
        ]:
            response = await opened.request(method, path, query=query)
            assert response.status == status
            assert named in json.loads(response.body)["message"]
            assert response.headers["x-amz-request-id"] == "request-id"
        assert (await opened.request("HEAD", STATS)).body == b""


async def test_defect_is_logged_and_not_told(open_api, caplog) -> None:
    async with open_api() as opened:
        opened.api._store = None
        response = await opened.request("GET", STATS)
        answer = json.loads(response.body)
        assert (response.status, answer["code"]) == (500, "InternalError")
        assert "NoneType" not in answer["message"]
        assert "AttributeError" in caplog.text


# --- the document -----------------------------------------------------------------------------------------------------


@pytest.fixture
def document() -> dict[str, Any]:
    path = Path(__file__).parents[2] / "kvgate" / "kvapi" / "openapi.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def _check(document: dict[str, Any], path: str, method: str, status: str, value: Any) -> None:
    answer = document["paths"][path][method]["responses"][status]
    if "$ref" in answer:
        answer = document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    schema = answer["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({"components": document["components"], **schema}).validate(value)


async def test_document_is_served_without_a_signature(open_api, document) -> None:
    async with open_api() as opened:
        response = await opened.request(*DOCUMENT, signed=False)
        assert (response.status, response.headers["Content-Type"]) == (200, "application/yaml")
        assert yaml.safe_load(response.body) == document
        assert document["openapi"] == "3.1.0"


def test_document_has_every_route_and_no_other(document) -> None:
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {*ROUTES, DOCUMENT}


async def test_answers_are_as_the_document_says(open_api, document) -> None:
    async with open_api() as opened:
        (chunk_hash,) = await opened.put_chunks(1)
        found = (await opened.ask(MATCH, question([chunk_hash.hex()])))[1]
        _check(document, MATCH, "post", "200", found)
        _check(document, MATCH, "post", "200", (await opened.ask(MATCH, question([])))[1])
        _check(document, RELEASE, "post", "200", (await opened.ask(RELEASE, {"lease": found["lease"]}))[1])
        _check(document, RELEASE, "post", "default", (await opened.ask(RELEASE, {"lease": found["lease"]}))[1])
        for tenant in ("alpha", "beta"):
            _check(document, STATS, "get", "200", (await opened.ask(STATS, tenant=tenant))[1])
            _check(document, TENANT, "get", "200", (await opened.ask(TENANT, tenant=tenant))[1])


def test_examples_and_requests_are_as_the_document_says(document) -> None:
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name == "Error" or schema.get("additionalProperties") is False or schema["type"] == "string"
    content = document["paths"][MATCH]["post"]["requestBody"]["content"]["application/json"]
    request = jsonschema.Draft202012Validator({"components": document["components"], **content["schema"]})
    request.validate(content["example"])
    request.validate(question([H]))
    for change in ({"hashes": None}, {"space": "x"}, {"leases": 3}, {"lease_s": 0}):
        assert not request.is_valid(question([H]) | change)
    _check(
        document,
        MATCH,
        "post",
        "200",
        document["paths"][MATCH]["post"]["responses"]["200"]["content"]["application/json"]["example"],
    )


# --- explain ----------------------------------------------------------------------------------------------------------


EXPLAIN = "/_kv/v1/explain"


async def test_explain_tells_of_each_chunk_in_order_in_both_encodings(open_api, document) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(2)
        await opened.store.delete("alpha", "bucket", f"kv/{SPACE.id}/{hashes[1].hex()}")
        for packed in (False, True):
            form = [each if packed else each.hex() for each in [hashes[1], hashes[0], bytes(32)]]
            status, answer = await opened.ask(EXPLAIN, question(form), packed=packed)
            assert status == 200
            assert [each["status"] for each in answer["objects"]] == ["deleted", "present", "not-written"]
            assert answer["objects"][1]["tiers"] == ["host"]
            assert answer["nearest"] == []
            assert 0 <= answer["now_ms"] - answer["objects"][0]["at_ms"] < 60_000
            _check(document, EXPLAIN, "post", "200", answer)
        keys = ["a/report", str(answer["objects"][1]["key"])]
        status, answer = await opened.ask(EXPLAIN, {"bucket": "bucket", "keys": keys})
        assert [each["status"] for each in answer["objects"]] == ["not-written", "present"]
        assert answer["nearest"] is None


async def test_explain_tells_a_tenant_of_its_own_objects_alone(open_api) -> None:
    async with open_api() as opened:
        hashes = await opened.put_chunks(2)
        await opened.store.delete("alpha", "bucket", f"kv/{SPACE.id}/{hashes[1].hex()}")
        asked = question([each.hex() for each in hashes])
        _, answer = await opened.ask(EXPLAIN, asked, tenant="beta")
        assert [each["status"] for each in answer["objects"]] == ["not-written", "not-written"]
        assert answer["nearest"] is None


async def test_explain_takes_the_manifest_of_a_space_that_is_not_there(open_api) -> None:
    async with open_api() as opened:
        await opened.put_chunks(1)
        other = SPACE.manifest() | {"lora": "sha256:" + "3" * 64}
        space = Space.from_manifest(other).id
        asked = question([H]) | {"space": space}
        assert (await opened.ask(EXPLAIN, asked))[1]["nearest"] is None
        _, answer = await opened.ask(EXPLAIN, asked | {"manifest": other})
        assert answer["nearest"] == [{"space": SPACE.id, "differs": ["lora"], "chunks": 1}]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"bucket": "bucket"}, "space: this field needs a value"),
        ({"bucket": "bucket", "keys": ["a"], "space": H}, "space: not together with `keys`"),
        ({"bucket": "bucket", "keys": "a"}, "keys: expected a list"),
        ({"bucket": "bucket", "keys": ["a"] * 9}, "keys: expected a list of at most 8"),
        ({"bucket": "bucket", "keys": ["a", 1]}, "keys[1]: expected text"),
        ({"bucket": "bucket", "space": H, "hashes": [H] * 9}, "hashes: at most 8"),
        ({"bucket": "bucket", "space": H, "hashes": [H], "manifest": "x"}, "manifest: expected a map"),
        ({"bucket": "bucket", "space": H, "hashes": [H], "manifest": SPACE.manifest()}, "manifest: it is the manifest"),
    ],
)
async def test_explain_names_the_field_that_is_wrong(open_api, asked, named) -> None:
    async with open_api(max_explain=8) as opened:
        status, answer = await opened.ask(EXPLAIN, asked)
        assert (status, answer["code"]) == (400, "InvalidArgument")
        assert named in answer["message"]


async def test_explain_of_an_unknown_bucket_is_told(open_api) -> None:
    async with open_api() as opened:
        status, answer = await opened.ask(EXPLAIN, question([H]) | {"bucket": "elsewhere"})
        assert (status, answer["code"]) == (404, "NoSuchBucket")
