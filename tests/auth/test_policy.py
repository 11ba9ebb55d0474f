from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.auth.actions import ACTIONS, BUCKET_ACTIONS, LISTINGS, OBJECT_ACTIONS, READ_ACTIONS, TAGGED_OBJECT_ACTIONS
from kvgate.auth.policy import ANYONE, MAX_POLICY_NBYTES, MAX_SEARCHES, Effect, Policy
from kvgate.errors import MalformedPolicy

BUCKET = "arn:aws:s3:::models"
OBJECTS = f"{BUCKET}/*"
ALLOW, DENY = Effect.ALLOW, Effect.DENY


def statement(**elements: Any) -> dict[str, Any]:
    """Everyone may get every object, but for the elements given; an element of None is left out."""
    whole = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": OBJECTS} | elements
    return {name: value for name, value in whole.items() if value is not None}


def parse(document: object) -> Policy:
    return Policy.parse(json.dumps(document).encode(), owner="acme", bucket="models")


def policy(*statements: object) -> Policy:
    return parse({"Version": "2012-10-17", "Statement": list(statements)})


def effect(
    of: Policy,
    caller: str | None = "beta",
    action: str = "s3:GetObject",
    key: str = "a/b",
    context: Mapping[str, str] | None = None,
) -> Effect | None:
    return of.effect(caller, action, key, context or {})


def refusal(document: object) -> str:
    with pytest.raises(MalformedPolicy) as caught:
        parse(document)
    return str(caught.value)


# --- who --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("principal", "allowed", "others"),
    [
        ("*", [ANYONE, "acme", "beta", "gamma"], []),
        ({"AWS": "*"}, [ANYONE, "acme", "beta", "gamma"], []),
        ({"AWS": ["beta", "*"]}, [ANYONE, "gamma"], []),
        ({"AWS": "beta"}, ["beta"], [ANYONE, "acme", "bet", "betamax", "Beta", ""]),
        ({"AWS": ["beta", "team_a.b"]}, ["beta", "team_a.b"], [ANYONE, "team", "teamxa.b"]),
        ({"AWS": "arn:aws:iam::beta:root"}, ["beta"], [ANYONE, "acme", "arn:aws:iam::beta:root"]),
        ({"CanonicalUser": ["beta", "gamma"]}, ["beta", "gamma"], [ANYONE, "acme"]),
        ({"AWS": "beta", "CanonicalUser": "gamma"}, ["beta", "gamma"], [ANYONE, "acme"]),
    ],
)
def test_principals(principal: object, allowed: list[str | None], others: list[str | None]) -> None:
    found = policy(statement(Principal=principal))
    assert [effect(found, caller) for caller in allowed] == [ALLOW] * len(allowed)
    assert [effect(found, caller) for caller in others] == [None] * len(others)


@pytest.mark.parametrize(
    "principal",
    [
        *("beta", "", None, 7, [], {}, ["*"], {"AWS": []}, {"AWS": [["beta"]]}, {"AWS": ["beta", 7]}, {"AWS": None}),
        *({"AWS": "be*"}, {"AWS": "Beta"}, {"AWS": ""}, {"AWS": "arn:aws:iam::beta:user/eve"}, {"CanonicalUser": "*"}),
        *({"AWS": "arn:aws:iam::beta"}, {"AWS": "beta:root"}, {"AWS": "arn:aws:iam::*:root"}, {"AWS": "beta\n"}),
        *({"Service": "s3.amazonaws.com"}, {"Federated": "x"}, {"AWS": "beta", "Service": "x"}, {"AWS": "${a}"}),
    ],
)
def test_other_principals_are_refused(principal: object) -> None:
    document = {"Statement": {"Effect": "Deny", "Principal": principal, "Action": "s3:*", "Resource": OBJECTS}}
    assert refusal(document).startswith("statement 1: Principal")


# --- what -------------------------------------------------------------------------------------------------------------


def test_an_allow_grants_only_what_it_names() -> None:
    found = policy(statement(Action=["s3:GetObject", "S3:GETOBJECTTAGGING"]))
    allowed = {action for action in ACTIONS if effect(found, action=action)}
    assert allowed == {"s3:GetObject", "s3:GetObjectTagging"}


@pytest.mark.parametrize(
    ("actions", "granted"),
    [
        ("s3:Get*", {action for action in READ_ACTIONS if action.startswith("s3:Get")}),
        ("s3:List*", {"s3:ListBucket", "s3:ListBucketVersions"}),
        (["s3:get*", "s3:list*"], READ_ACTIONS),
        ("s3:GetObject?*", READ_ACTIONS & OBJECT_ACTIONS - {"s3:GetObject"}),
        ("s3:*ListBucket", {"s3:ListBucket"}),
        (["s3:GetBucketLocation"], {"s3:GetBucketLocation"}),
    ],
)
def test_wildcards_of_an_allow_grant_reading_only(actions: object, granted: set[str]) -> None:
    found = policy(statement(Action=actions, Resource=[BUCKET, OBJECTS]))
    assert {a for a in ACTIONS if effect(found, action=a, key="k") or effect(found, action=a, key="")} == granted


@given(st.lists(st.sampled_from(["s3:", "Get", "List", "Put", "Object", "Bucket", "*", "?", "Delete"]), max_size=5))
def test_no_allow_that_is_accepted_grants_more_than_reading(parts: list[str]) -> None:
    try:
        found = policy(statement(Action="".join(parts), Resource=[BUCKET, OBJECTS]))
    except MalformedPolicy:
        return
    granted = {action for action in ACTIONS for key in ("", "k") if effect(found, action=action, key=key)}
    assert granted
    assert granted <= READ_ACTIONS


@pytest.mark.parametrize(
    "action",
    [
        *("s3:*", "*", "s3:PutObject", "s3:Put*", "s3:Delete*", "s3:*Object", "s3:???Object", "s3:GetBucketPolicy"),
        *("s3:ListBucketMultipartUploads", "s3:GetBucketCORS", "s3:DeleteObject", "s3:PutBucketPolicy", "s3:*Version"),
    ],
)
def test_an_allow_of_more_than_reading_is_refused_and_says_what_to_use(action: str) -> None:
    message = refusal({"Statement": statement(Action=action, Resource=[BUCKET, OBJECTS])})
    assert message.startswith(f"statement 1: Action {action!r} cannot be granted; others can be granted s3:Get")
    assert "s3:Get* and s3:List*" in message


@pytest.mark.parametrize("action", ["*", "s3:*", "S3:*", "?3:*"])
def test_a_deny_of_everything_is_of_everything(action: str) -> None:
    found = policy(statement(Effect="Deny", Action=action, Resource=[BUCKET, OBJECTS]))
    assert all(effect(found, action=name, key="k") is DENY for name in OBJECT_ACTIONS)
    assert all(effect(found, action=name, key="") is DENY for name in BUCKET_ACTIONS)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_a_deny_may_name_any_action(action: str) -> None:
    key = "k" if action in OBJECT_ACTIONS else ""
    found = policy(statement(Effect="Deny", Action=action, Resource=[BUCKET, OBJECTS]))
    assert {name for name in ACTIONS if effect(found, action=name, key=key)} == {action}


@pytest.mark.parametrize(
    "action", ["s3:PutObjct", "PutObject", "ec2:RunInstances", "s3:", "", "s3:HeadObject", "s3:Put Object", "s3:x*"]
)
def test_what_is_no_action_is_refused_in_a_deny_too(action: str) -> None:
    assert "is not an action of S3" in refusal({"Statement": statement(Effect="Deny", Action=action)})


@pytest.mark.parametrize(
    ("action", "resource", "expected"),
    [
        ("s3:ListBucket", OBJECTS, f"names the bucket itself, {BUCKET}"),
        ("s3:GetObject", BUCKET, f"names objects, such as {BUCKET}/*"),
        (["s3:GetObject", "s3:ListBucket"], [OBJECTS], f"names the bucket itself, {BUCKET}"),
        ("s3:GetObj*", BUCKET, f"names objects, such as {BUCKET}/*"),
    ],
)
def test_an_action_without_a_resource_of_its_kind_is_refused(action: object, resource: object, expected: str) -> None:
    for kind in ("Allow", "Deny"):
        assert expected in refusal({"Statement": statement(Effect=kind, Action=action, Resource=resource)})


def test_the_lists_of_actions_agree() -> None:
    assert not OBJECT_ACTIONS & BUCKET_ACTIONS
    assert READ_ACTIONS < ACTIONS
    assert LISTINGS < BUCKET_ACTIONS
    assert TAGGED_OBJECT_ACTIONS < OBJECT_ACTIONS
    assert all(re.fullmatch("s3:[A-Z][A-Za-z]+", action) for action in ACTIONS)


def test_an_action_that_a_policy_cannot_know_is_a_defect_and_not_undenied() -> None:
    with pytest.raises(ValueError, match="HeadObject"):
        effect(policy(statement()), action="s3:HeadObject")


# --- on what ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "inside", "outside"),
    [
        (OBJECTS, ["a", "a/b", "é", "\n", "*"], [""]),
        (f"{BUCKET}/a/*", ["a/", "a/b", "a/b/c"], ["", "a", "b/a/", "A/b"]),
        (f"{BUCKET}/a", ["a"], ["", "a/", "ab"]),
        (f"{BUCKET}/a?c/*.txt", ["abc/.txt", "a/c/d/e.txt"], ["ac/x.txt", "abc/x.TXT", "abc/x.txt2"]),
        (f"{BUCKET}//x", ["/x"], ["x", "//x"]),
        (f"{BUCKET}/[ab]", ["[ab]"], ["a", "b"]),
        ("arn:aws:s3:::acme_models/a", ["a"], ["b", ""]),
        ([f"{BUCKET}/a", f"{BUCKET}/b*"], ["a", "b", "bc"], ["ac"]),
    ],
)
def test_resources(resource: object, inside: list[str], outside: list[str]) -> None:
    found = policy(statement(Resource=resource))
    assert [effect(found, key=key) for key in inside] == [ALLOW] * len(inside)
    assert [effect(found, key=key) for key in outside] == [None] * len(outside)


def test_a_pattern_of_every_key_is_not_the_bucket_itself() -> None:
    objects = policy(statement(Effect="Deny", Action="s3:*", Resource=OBJECTS))
    bucket = policy(statement(Effect="Deny", Action="s3:*", Resource=BUCKET))
    assert effect(objects, action="s3:ListBucket", key="") is None
    assert effect(bucket, action="s3:ListBucket", key="") is DENY
    assert effect(bucket, action="s3:GetObject", key="k") is None


@pytest.mark.parametrize(
    "resource",
    [
        *("*", "models", "models/*", "arn:aws:s3:::*", "arn:aws:s3:::models*", "arn:aws:s3:::model?/*", f"{BUCKET}/"),
        *("arn:aws:s3:::other/*", "arn:aws:s3:::beta_models/*", "arn:aws:s3:::acme_other/*", "arn:aws:s3:::/models/*"),
        *("arn:aws-cn:s3:::models/*", "ARN:aws:s3:::models/*", "arn:aws:s3:eu-west-1::models/*", "", "arn:aws:s3:::"),
        *([], [OBJECTS, "arn:aws:s3:::other/*"], [OBJECTS, 7], None, {}, f"{BUCKET}/${{aws:username}}/*"),
        f"{BUCKET}/" + "a" * 1025,
    ],
)
def test_other_resources_are_refused(resource: object) -> None:
    document = {"Statement": {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": resource}}
    assert re.match("statement 1: (Resource|the pattern)", refusal(document))


# --- under which conditions -------------------------------------------------------------------------------------------

LIST = {"Action": "s3:ListBucket", "Resource": BUCKET}
PREFIX, TAG = "s3:prefix", "s3:ExistingObjectTag/team"


@pytest.mark.parametrize(
    ("operator", "values", "holds", "fails", "when_absent"),
    [
        ("StringEquals", "a/", ["a/"], ["a", "A/", "a/b", ""], False),
        ("StringEquals", ["a/", "b/", ""], ["a/", "b/", ""], ["c/"], False),
        ("StringEquals", "a*", ["a*"], ["ab"], False),
        ("StringEqualsIfExists", "a/", ["a/"], ["b/"], True),
        ("StringNotEquals", ["a/", "b/"], ["c/", "", "A/"], ["a/", "b/"], True),
        ("StringNotEqualsIfExists", "a/", ["b/"], ["a/"], True),
        ("StringLike", ["a/*", "?/b"], ["a/", "a/c", "x/b"], ["xx/b", "", "A/"], False),
        ("StringLikeIfExists", "a/*", ["a/b"], ["b"], True),
        ("StringNotLike", ["a/*", "b"], ["c", "", "bb"], ["a/", "a/x", "b"], True),
        ("StringNotLikeIfExists", "a/*", ["b"], ["a/"], True),
        ("Null", "true", [], ["", "a/"], True),
        ("Null", False, ["", "a/"], [], False),
        ("Null", "false", ["", "a/"], [], False),
        ("Null", True, [], ["", "a/"], True),
    ],
)
def test_operators(operator: str, values: object, holds: list[str], fails: list[str], when_absent: bool) -> None:
    for key, elements, request in ((PREFIX, LIST, ("s3:ListBucket", "")), (TAG, {}, ("s3:GetObject", "k"))):
        found = policy(statement(**elements, Condition={operator: {key: values}}))
        action, on = request
        answers = [effect(found, action=action, key=on, context={key: value}) for value in holds + fails]
        assert answers == [ALLOW] * len(holds) + [None] * len(fails)
        assert effect(found, action=action, key=on) is (ALLOW if when_absent else None)


def test_all_conditions_must_hold() -> None:
    block = {"StringLike": {"s3:prefix": "a/*", "S3:Delimiter": "/"}, "StringNotEquals": {"S3:PREFIX": "a/secret/"}}
    found = policy(statement(**LIST, Condition=block))

    def listed(**context: str) -> Effect | None:
        context = {f"s3:{name}": value for name, value in context.items()}
        return effect(found, action="s3:ListBucket", key="", context=context)

    assert listed(prefix="a/b", delimiter="/") is ALLOW
    assert listed(prefix="a/secret/", delimiter="/") is None
    assert listed(prefix="a/b") is None
    assert listed(prefix="b/", delimiter="/") is None
    assert listed() is None


def test_the_case_of_a_tag_counts() -> None:
    found = policy(statement(Condition={"StringEquals": {"S3:existingobjecttag/Team": "x"}}))
    assert effect(found, context={"s3:ExistingObjectTag/Team": "x"}) is ALLOW
    assert effect(found, context={"s3:ExistingObjectTag/team": "x"}) is None


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, "'aws:SourceIp'"),
        ({"Bool": {"aws:SecureTransport": "false"}}, "'aws:SecureTransport'"),
        ({"StringEquals": {"aws:username": "eve"}}, "'aws:username'"),
        ({"StringEquals": {"s3:max-keys": "1"}}, "'s3:max-keys'"),
        ({"StringEquals": {"s3:RequestObjectTag/a": "1"}}, "'s3:RequestObjectTag/a'"),
        ({"StringEquals": {"s3:ExistingObjectTag/": "1"}}, "'s3:ExistingObjectTag/'"),
        ({"StringEquals": {"s3:ExistingObjectTag": "1"}}, "'s3:ExistingObjectTag'"),
        ({"StringEqualsIgnoreCase": {TAG: "x"}}, "'StringEqualsIgnoreCase'"),
        ({"NumericEquals": {TAG: "1"}}, "'NumericEquals'"),
        ({"stringequals": {TAG: "1"}}, "'stringequals'"),
        ({"NullIfExists": {TAG: "true"}}, "'NullIfExists'"),
        ({"ForAnyValue:StringEquals": {TAG: "x"}}, "'ForAnyValue:StringEquals'"),
        ({"IfExists": {TAG: "x"}}, "'IfExists'"),
        ({"StringEquals": {TAG: "${aws:username}"}}, "policy variable"),
        ({"StringLike": {TAG: "a" * 1025}}, "over 1024 characters"),
        ({"StringEquals": {TAG: []}}, "expected a string"),
        ({"StringEquals": {TAG: 7}}, "expected a string"),
        ({"StringEquals": {TAG: ["x", None]}}, "expected a string"),
        ({"StringEquals": {}}, "Condition StringEquals: expected an object"),
        ({"StringEquals": TAG}, "Condition StringEquals: expected an object"),
        ({"Null": {TAG: "maybe"}}, '"true" or "false"'),
        ({"Null": {TAG: 1}}, '"true" or "false"'),
        ({}, "Condition: expected an object"),
        (None, "Condition: expected an object"),
        ([{"StringEquals": {TAG: "x"}}], "Condition: expected an object"),
    ],
)
def test_other_conditions_are_refused_by_name(condition: object, named: str) -> None:
    for kind in ("Allow", "Deny"):
        message = refusal({"Statement": [statement(), statement(Effect=kind) | {"Condition": condition}]})
        assert message.startswith("statement 2: ")
        assert named in message


@pytest.mark.parametrize(
    ("action", "resource", "key"),
    [
        ("s3:GetObject", OBJECTS, PREFIX),
        ("s3:ListBucket", BUCKET, TAG),
        ("s3:PutObject", OBJECTS, TAG),  # there is no object yet
        (["s3:ListBucket", "s3:GetObject"], [BUCKET, OBJECTS], PREFIX),
        ("s3:*", BUCKET, TAG),
        ("s3:*", OBJECTS, "s3:delimiter"),
    ],
)
def test_a_condition_on_what_an_action_never_has_is_refused(action: object, resource: object, key: str) -> None:
    block = {"StringEquals": {key: "x"}}
    document = {"Statement": statement(Effect="Deny", Action=action, Resource=resource, Condition=block)}
    assert re.search(r"Condition on .*: Action .* never has it", refusal(document))


# --- taken together ---------------------------------------------------------------------------------------------------


def test_a_deny_wins_wherever_it_stands() -> None:
    allow = statement()
    deny = statement(Effect="Deny", Principal={"AWS": "beta"}, Action="s3:*", Resource=f"{BUCKET}/secret/*")
    for statements in ((allow, deny), (deny, allow), (allow, deny, allow)):
        found = policy(*statements)
        assert effect(found, "beta", key="secret/x") is DENY
        assert effect(found, "gamma", key="secret/x") is ALLOW
        assert effect(found, "beta", key="open/x") is ALLOW
        assert effect(found, "beta", "s3:PutObject", "secret/x") is DENY
        assert effect(found, "beta", "s3:PutObject", "open/x") is None


def test_objects_without_a_tag_can_be_kept_from_everyone() -> None:
    block = {"StringNotEquals": {TAG: "public"}}
    found = policy(statement(), statement(Effect="Deny", Condition=block))
    assert effect(found, ANYONE, context={TAG: "public"}) is ALLOW
    assert effect(found, ANYONE, context={TAG: "private"}) is DENY
    assert effect(found, ANYONE) is DENY


@pytest.mark.parametrize(
    ("statements", "public"),
    [
        ([statement()], True),
        ([statement(Principal={"AWS": ["*"]})], True),
        ([statement(Condition={"StringEquals": {TAG: "x"}})], True),  # narrows the objects, not who gets them
        ([statement(Principal={"AWS": "beta"})], False),
        ([statement(Effect="Deny")], False),
        ([statement(Principal={"AWS": "beta"}), statement(Effect="Deny")], False),
        ([statement(Principal={"AWS": "beta"}), statement(Resource=f"{BUCKET}/x")], True),
    ],
)
def test_a_policy_that_allows_everyone_something_is_public(statements: list[object], public: bool) -> None:
    assert policy(*statements).is_public is public


_NAMES = st.sampled_from(["beta", "gamma", "*"])
_KEYS = st.sampled_from(["*", "a/*", "a/b", "?/b"])


@st.composite
def _statements(draw: st.DrawFn) -> dict[str, Any]:
    return statement(
        Effect=draw(st.sampled_from(["Allow", "Deny"])),
        Principal={"AWS": draw(st.lists(_NAMES, min_size=1, max_size=2))},
        Action=draw(st.lists(st.sampled_from(["s3:GetObject", "s3:GetObjectTagging", "s3:Get*"]), min_size=1)),
        Resource=[f"{BUCKET}/{pattern}" for pattern in draw(st.lists(_KEYS, min_size=1, max_size=3))],
    )


@given(st.lists(_statements(), min_size=1, max_size=5), st.randoms())
def test_order_does_not_matter_and_a_deny_only_takes_away(statements: list[dict[str, Any]], random: Any) -> None:
    shuffled = statements.copy()
    random.shuffle(shuffled)
    allows = [each for each in statements if each["Effect"] == "Allow"]
    for caller in (ANYONE, "beta", "delta"):
        for key in ("a/b", "a/c", "x/b", "q"):
            found = effect(policy(*statements), caller, key=key)
            assert effect(policy(*shuffled), caller, key=key) is found
            if found is ALLOW:
                assert effect(policy(*allows), caller, key=key) is ALLOW
            each = [effect(policy(one), caller, key=key) for one in statements]
            assert found is (DENY if DENY in each else ALLOW if ALLOW in each else None)


# --- the document -----------------------------------------------------------------------------------------------------


def test_a_whole_document() -> None:
    document = {
        "Version": "2012-10-17",
        "Id": "sharing",
        "Statement": [
            statement(Sid="read", Principal={"AWS": ["beta"]}),
            statement(Sid="list", Principal={"AWS": ["beta"]}, **LIST),
        ],
    }
    found = parse(document)
    assert found == parse(document)
    assert effect(found) is ALLOW
    assert effect(found, action="s3:ListBucket", key="") is ALLOW
    assert not found.is_public
    assert parse({"Version": "2008-10-17", "Statement": statement()}) == parse({"Statement": [statement()]})


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ([], "JSON object"),
        ("", "JSON object"),
        ({}, "Statement"),
        ({"Statement": []}, "Statement"),
        ({"Statement": None}, "Statement"),
        ({"Statement": "x"}, "statement 1: expected an object"),
        ({"Statement": [statement(), 7]}, "statement 2: expected an object"),
        ({"Version": "2012-10-18", "Statement": statement()}, "Version"),
        ({"Version": None, "Statement": statement()}, "Version"),
        ({"Version": ["2012-10-17"], "Statement": statement()}, "Version"),
        ({"Id": 7, "Statement": statement()}, "Id"),
        ({"Statement": statement(), "Comment": ""}, "'Comment'"),
        ({"statement": statement()}, "'statement'"),
        ({"Statement": statement(Sid=7)}, "Sid"),
        ({"Statement": [statement(Sid="a"), statement(Sid="a")]}, "statement 2 (Sid 'a'): Sid"),
        ({"Statement": statement(Sid="a", Effect="allow")}, "statement 1 (Sid 'a'): Effect"),
        ({"Statement": statement(Effect=["Allow"])}, "Effect"),
        ({"Statement": statement(Effect=None)}, "Effect is missing"),
        ({"Statement": statement(Principal=None)}, "Principal is missing"),
        ({"Statement": statement(Action=None)}, "Action is missing"),
        ({"Statement": statement(Resource=None)}, "Resource is missing"),
        ({"Statement": statement(NotPrincipal="*")}, "NotPrincipal is not evaluated; use Principal"),
        ({"Statement": statement(Action=None, NotAction="s3:*")}, "NotAction is not evaluated; use Action"),
        ({"Statement": statement(NotResource=OBJECTS)}, "NotResource is not evaluated; use Resource"),
        ({"Statement": statement(condition={})}, "'condition'"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(document: object, named: str) -> None:
    assert named in refusal(document)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b'{"Statement": [], "Statement": []}',
        json.dumps({"Statement": statement()}).replace('"Effect"', '"Effect": "Deny", "Effect"').encode(),
        b"[" * 10_000,
        b'{"Statement": NaN}',
        json.dumps({"Id": "x" * MAX_POLICY_NBYTES, "Statement": statement()}).encode(),
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedPolicy):
        Policy.parse(text, owner="acme", bucket="models")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from([BUCKET, OBJECTS, "s3:*", "*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["Sid", "Effect", "Principal", "Action", "Resource", "Condition", "Other"]), _JSON)
def test_any_element_is_parsed_or_refused(element: str, value: object) -> None:
    document = {"Statement": statement(Effect="Deny") | {element: value}}
    try:
        found = parse(document)
    except MalformedPolicy:
        assert refusal(document).startswith("statement 1")
    else:
        assert effect(found) in (DENY, None)


# --- hostile documents ------------------------------------------------------------------------------------------------


def _fits(document: object) -> bool:
    return len(json.dumps(document).encode()) <= MAX_POLICY_NBYTES


@pytest.mark.parametrize("pattern", ["*a" * 120 + "*b", "?" * 250 + "*b", "*" + "a?" * 120 + "b"])
def test_a_document_full_of_searching_patterns_is_evaluated_to_its_end(pattern: str) -> None:
    document = {"Statement": statement(Resource=[f"{BUCKET}/{pattern}"] * MAX_SEARCHES)}
    assert _fits(document)
    found = parse(document)
    for _ in range(10):
        assert effect(found, key="a" * 1024) is None


def test_more_searching_patterns_are_refused() -> None:
    condition = {"StringLike": {TAG: "*x*"}}
    statements = [statement(Resource=[f"{BUCKET}/*/{n}" for n in range(MAX_SEARCHES)])]
    policy(*statements)
    assert f"statement 2: at most {MAX_SEARCHES} patterns" in refusal(
        {"Statement": [*statements, statement(Condition=condition)]}
    )
    policy(statement(Resource=[f"{BUCKET}/{n}/*" for n in range(5 * MAX_SEARCHES)]))


@pytest.mark.parametrize("action", ["s3:Get*", "s3:GetObject", "*"])
def test_a_document_full_of_actions_is_parsed_to_its_end(action: str) -> None:
    actions = [action] * (MAX_POLICY_NBYTES // 20)
    document = {"Statement": statement(Effect="Deny", Action=actions, Resource=[BUCKET, OBJECTS])}
    assert _fits(document)
    parse(document)


def test_patterns_of_actions_count_too() -> None:
    actions = ["s3:*Object*"] * (MAX_SEARCHES + 1)
    policy(statement(Effect="Deny", Action=actions[1:]))
    assert f"at most {MAX_SEARCHES} patterns" in refusal({"Statement": statement(Effect="Deny", Action=actions)})
