"""Browser pages of other origins: preflight requests, and what answers let a page see."""

from __future__ import annotations

import http.client

from tests.gateways import BETA, RunningGateway
from tests.s3.clients import refused, s3_client
from tests.wire import send

BUCKET = "alpha-bucket"
RULES = {
    "CORSRules": [
        {
            "AllowedOrigins": ["https://*.example.com"],
            "AllowedMethods": ["GET", "PUT"],
            "AllowedHeaders": ["x-amz-*", "content-type"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 600,
        }
    ]
}
PAGE = "https://app.example.com"


def ask(gateway: RunningGateway, path: str, origin: str, method: str, headers: str = "") -> http.client.HTTPResponse:
    """A preflight request, as a browser sends it: unsigned."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    sent = {"Origin": origin, "Access-Control-Request-Method": method}
    connection.request("OPTIONS", path, headers=sent | ({"Access-Control-Request-Headers": headers} if headers else {}))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_preflight_by_the_rules_of_the_bucket(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    client.put_bucket_cors(Bucket=BUCKET, CORSConfiguration=RULES)
    assert client.get_bucket_cors(Bucket=BUCKET)["CORSRules"] == RULES["CORSRules"]
    named = f"/alpha_{BUCKET}/k"
    answer = ask(gateway, named, PAGE, "PUT", "X-Amz-Date, content-type")
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Access-Control-Max-Age"] == "600"
    assert "PUT" in answer.headers["Access-Control-Allow-Methods"]
    assert ask(gateway, named, "https://example.org", "PUT").status == 403
    assert ask(gateway, named, PAGE, "DELETE").status == 403
    assert ask(gateway, named, PAGE, "PUT", "authorization").status == 403
    assert ask(gateway, "/alpha_shared-name/k", PAGE, "PUT").status == 403
    assert ask(gateway, f"/{BUCKET}/k", PAGE, "PUT").status == 403  # whose, it does not say
    client.delete_bucket_cors(Bucket=BUCKET)
    assert ask(gateway, named, PAGE, "PUT").status == 403
    assert refused(client.get_bucket_cors, Bucket=BUCKET) == ("NoSuchCORSConfiguration", 404)


def test_a_presigned_query_says_whose_bucket_it_is(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    client.put_bucket_cors(Bucket="shared-name", CORSConfiguration=RULES)
    for version in ("s3v4", "s3"):
        target = {"Bucket": "shared-name", "Key": "k"}
        mine = s3_client(gateway, signature_version=version).generate_presigned_url("put_object", Params=target)
        theirs = s3_client(gateway, BETA, signature_version=version).generate_presigned_url("put_object", Params=target)
        assert ask(gateway, mine.removeprefix(gateway.url), PAGE, "PUT").status == 200
        assert ask(gateway, theirs.removeprefix(gateway.url), PAGE, "PUT").status == 403
    client.delete_bucket_cors(Bucket="shared-name")


def test_answers_and_errors_carry_the_headers_for_the_page(gateway: RunningGateway) -> None:
    client = s3_client(gateway)
    client.put_bucket_cors(Bucket=BUCKET, CORSConfiguration=RULES)
    client.put_object(Bucket=BUCKET, Key="for-pages", Body=b"x")
    for key, status in (("for-pages", 200), ("not-there", 404)):
        answer = send(gateway, "GET", f"/{BUCKET}/{key}", {"origin": PAGE})
        assert answer[0] == status
        assert answer[1]["access-control-allow-origin"] == PAGE
        assert answer[1]["access-control-expose-headers"] == "ETag"
        assert "Origin" in answer[1]["vary"]
    _, headers, _ = send(gateway, "GET", f"/{BUCKET}/for-pages", {"origin": "https://example.org"})
    assert "access-control-allow-origin" not in headers
    assert "Origin" in headers["vary"]
    client.delete_bucket_cors(Bucket=BUCKET)
    assert "vary" not in send(gateway, "GET", f"/{BUCKET}/for-pages", {"origin": PAGE})[1]


def test_requests_that_are_no_preflight_are_refused(gateway: RunningGateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.request("OPTIONS", f"/{BUCKET}/k")
    assert connection.getresponse().status == 400
    connection.close()
