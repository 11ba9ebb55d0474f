from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.post_policy import MAX_POLICY_NBYTES, PostPolicy
from kvgate.errors import AccessDenied, InvalidPolicyDocument

EXPIRATION = "2026-01-27T10:00:00Z"
BUCKET = {"bucket": "photos"}


def encoded(document: object) -> str:
    text = document if isinstance(document, str) else json.dumps(document)
    return base64.b64encode(text.encode()).decode()


def policy(*conditions: object) -> PostPolicy:
    return PostPolicy.parse(encoded({"expiration": EXPIRATION, "conditions": list(conditions)}))


# --- what a policy says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expiration", [EXPIRATION, "2026-01-27T10:00:00.000Z", "2026-01-27T10:00:00.999999999Z"])
def test_the_expiration_is_read_to_the_second(expiration: str) -> None:
    assert PostPolicy.parse(encoded({"expiration": expiration, "conditions": []})).expires == 1_769_508_000


def test_the_example_of_the_s3_documentation_is_read() -> None:
    parsed = policy(
        {"bucket": "sigv4examplebucket"},
        ["starts-with", "$key", "user/user1/"],
        {"acl": "public-read"},
        {"success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html"},
        ["starts-with", "$Content-Type", "image/"],
        {"x-amz-meta-uuid": "14365123651274"},
        ["starts-with", "$x-amz-meta-tag", ""],
        {"x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"},
        {"x-amz-algorithm": "AWS4-HMAC-SHA256"},
        {"x-amz-date": "20151229T000000Z"},
        ["content-length-range", 1048576, 10485760],
    )
    assert (parsed.min_nbytes, parsed.max_nbytes) == (1 << 20, 10 << 20)
    parsed.check(
        {
            "bucket": "sigv4examplebucket",
            "key": "user/user1/photo.png",
            "acl": "public-read",
            "success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html",
            "content-type": "image/png",
            "x-amz-meta-uuid": "14365123651274",
            "x-amz-meta-tag": "",
            "x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request",
            "x-amz-algorithm": "AWS4-HMAC-SHA256",
            "x-amz-date": "20151229T000000Z",
            "policy": "p",
            "x-amz-signature": "s",
        }
    )


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ({"key": "a"}, "a", True),
        ({"key": "a"}, "A", False),
        ({"key": "a"}, "ab", False),
        (["eq", "$key", "a"], "a", True),
        (["eq", "$key", "a"], "", False),
        (["eq", "$key", ""], "", True),
        (["EQ", "$kEY", "a"], "a", True),
        (["starts-with", "$key", "user/"], "user/x", True),
        (["starts-with", "$key", "user/"], "User/x", False),
        (["starts-with", "$key", "user/"], "x/user/", False),
        (["starts-with", "$key", ""], "anything", True),
        (["Starts-With", "$KEY", ""], "", True),
        (["starts-with", "$key", "a"], "ab,c", True),
        ({"key": "ü/漢字"}, "ü/漢字", True),
    ],
)
def test_conditions_on_one_field(condition: Any, value: str, holds: bool) -> None:
    parsed, fields = policy(BUCKET, condition), {"bucket": "photos", "key": value}
    if holds:
        parsed.check(fields)
    else:
        with pytest.raises(AccessDenied, match=r"Invalid according to Policy: Policy Condition failed: .*\$key"):
            parsed.check(fields)


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ("image/png", True),
        ("image/png,image/gif", True),
        ("image/png, image/gif", True),
        ("image/png,text/html", False),
        ("text/html,image/png", False),
        ("image/png,", False),
        ("text/html", False),
    ],
)
def test_every_type_of_a_list_must_begin_so(value: str, holds: bool) -> None:
    parsed, fields = policy(BUCKET, ["starts-with", "$Content-Type", "image/"]), BUCKET | {"content-type": value}
    if holds:
        parsed.check(fields)
    else:
        with pytest.raises(AccessDenied):
            parsed.check(fields)


@pytest.mark.parametrize("condition", [{"acl": "private"}, {"acl": ""}, ["starts-with", "$acl", ""]])
def test_a_condition_needs_its_field(condition: Any) -> None:
    with pytest.raises(AccessDenied, match="Policy Condition failed"):
        policy(BUCKET, condition).check(BUCKET)


def test_every_condition_must_hold() -> None:
    parsed = policy(BUCKET, ["starts-with", "$key", "a"], ["starts-with", "$key", "ab"], {"key": "abc"})
    parsed.check(BUCKET | {"key": "abc"})
    for key in ("a", "ab", "abcd"):
        with pytest.raises(AccessDenied):
            parsed.check(BUCKET | {"key": key})


def test_every_field_needs_a_condition_but_those_that_sign_or_are_ignored() -> None:
    parsed = policy(BUCKET)
    parsed.check(BUCKET | {"policy": "p", "signature": "s", "x-amz-signature": "s", "awsaccesskeyid": "a"})
    parsed.check(BUCKET | {"x-ignore-a": "1", "x-ignore-": "2"})
    with pytest.raises(AccessDenied, match="x-ignore-a"):
        policy(BUCKET, {"x-ignore-a": "1"}).check(BUCKET | {"x-ignore-a": "2"})
    for name in ("key", "acl", "x-amz-meta-a", "submit", "x-amz-credential", "success_action_redirect", "tagging"):
        with pytest.raises(AccessDenied, match=f"Extra input fields: {name}"):
            parsed.check(BUCKET | {name: ""})
    with pytest.raises(AccessDenied, match="Extra input fields: bucket"):
        policy().check(BUCKET)


def test_ranges_of_length_are_intersected() -> None:
    assert (policy().min_nbytes, policy().max_nbytes) == (0, None)
    parsed = policy(["content-length-range", 2, 9], ["Content-Length-Range", 1, 5], ["content-length-range", 0, 7])
    assert (parsed.min_nbytes, parsed.max_nbytes) == (2, 5)


def test_the_escapes_that_s3_asks_for_are_read() -> None:
    conditions = r'[{"key": "\$a\\$b\\v\v\"\u00e9"}]'
    parsed = PostPolicy.parse(encoded(f'{{"expiration": "{EXPIRATION}", "conditions": {conditions}}}'))
    parsed.check({"key": '$a\\$b\\v\v"é'})


# --- what is no policy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ("{", "JSON"),
        (f'{{"expiration": "{EXPIRATION}", "conditions": [],}}', "JSON"),
        (f'{{"expiration": "{EXPIRATION}", "conditions": [], "conditions": []}}', "twice"),
        ("[" * 15_000, "deep"),
        ({"conditions": []}, "missing expiration"),
        ({"expiration": EXPIRATION}, "missing conditions"),
        ({"expiration": EXPIRATION, "CONDITIONS": []}, "missing conditions"),
        ({"EXPIRATION": EXPIRATION, "conditions": []}, "missing expiration"),
        ({"expiration": EXPIRATION, "conditions": [], "id": 1}, "id"),
        ({"expiration": EXPIRATION, "conditions": {}}, "list"),
    ],
)
def test_documents_of_another_shape_are_refused(document: object, cause: str) -> None:
    with pytest.raises(InvalidPolicyDocument, match=cause):
        PostPolicy.parse(encoded(document))


@pytest.mark.parametrize(
    "expiration",
    [
        *("", "tomorrow", "2026-01-27", "2026-01-27 10:00:00Z", "2026-01-27T10:00:00", "2026-01-27T10:00:00+01:00"),
        *("2026-13-27T10:00:00Z", "2026-01-27T25:00:00Z", "0000-01-27T10:00:00Z", "\uff12026-01-27T10:00:00Z"),
        *(1769508000, None, "2026-01-27T10:00:00.Z", "2026-01-27T10:00:00Z\n"),
    ],
)
def test_other_expirations_are_refused(expiration: object) -> None:
    with pytest.raises(InvalidPolicyDocument, match="expiration"):
        PostPolicy.parse(encoded({"expiration": expiration, "conditions": []}))


@pytest.mark.parametrize(
    "condition",
    [
        *({}, {"key": 1}, {"key": None}, {"key": ["a"]}, {"key": "a", "acl": "b"}, [], "key", None, 1),
        *(["eq", "$key"], ["eq", "$key", "a", "b"], ["eq", "key", "a"], ["eq", "$key", 1], ["eq", 1, "a"]),
        *([1, "$key", "a"], ["ends-with", "$key", "a"], ["", "$key", "a"]),
        *(["content-length-range", 0], ["content-length-range", -1, 0], ["content-length-range", 0, -1]),
        *(["content-length-range", 0, 1.5], ["content-length-range", False, True], ["content-length-range", 0, None]),
        *(["content-length-range", "0", "1"], ["content-length-range", 0, 1, 2]),
    ],
)
def test_other_conditions_are_refused(condition: object) -> None:
    with pytest.raises(InvalidPolicyDocument, match="Invalid Policy"):
        policy(condition)


@pytest.mark.parametrize("text", ["", "ä", "e30", "e30=\n", " e30=", "\x00", "e30=" * (MAX_POLICY_NBYTES // 4 + 1)])
def test_what_is_not_base64_of_a_document_is_refused(text: str) -> None:
    with pytest.raises(InvalidPolicyDocument):
        PostPolicy.parse(text)


def test_the_longest_policy_is_read_and_a_longer_one_is_not() -> None:
    def padded(nbytes: int) -> str:
        document = {"expiration": EXPIRATION, "conditions": [{"key": ""}]}
        document["conditions"] = [{"key": "k" * (nbytes - len(json.dumps(document)))}]
        return encoded(document)

    assert PostPolicy.parse(padded(MAX_POLICY_NBYTES * 3 // 4))
    with pytest.raises(InvalidPolicyDocument, match="over"):
        PostPolicy.parse(padded(MAX_POLICY_NBYTES * 3 // 4 + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["eq", "$key", EXPIRATION]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    conditions=st.lists(JSON, max_size=4),
    expiration=st.just(EXPIRATION) | JSON,
    fields=st.dictionaries(st.text(max_size=3), st.text()),
)
def test_whatever_is_sent_is_read_or_refused_in_the_words_of_the_domain(
    conditions: list[Any], expiration: object, fields: dict[str, str]
) -> None:
    try:
        parsed = PostPolicy.parse(encoded({"expiration": expiration, "conditions": conditions}))
    except InvalidPolicyDocument:
        return
    with pytest.raises(AccessDenied):
        parsed.check(fields | {"a field of no condition": ""})
