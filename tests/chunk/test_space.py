from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvgate.chunk.space import (
    BODY,
    FIELDS,
    FIELDS_OF,
    HASH_SCHEME,
    MAX_MANIFEST_NBYTES,
    VLLM_SHA256,
    VLLM_SHA256_CBOR,
    Space,
    layout_version_of,
)
from kvgate.errors import InvalidManifest

# printf %s "$CANONICAL" | sha256sum
CANONICAL = (
    b'{"attention":"gqa","chunk_tokens":4,"dtype":"BF16","hash_scheme":"kvgate-sha256-chain-v1",'
    b'"head_dim":8,"kv_heads":4,"layers":3,"layout_version":1,"lora":"none","model":"meta-llama/Llama-3.1-8B","multimodal":"none",'
    b'"rope":{"beta":1e-7,"rope_theta":500000,"rope_type":"llama3","scaled":true,"short_factor":[1.5,2]},'
    b'"tokenizer":"sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",'
    b'"weights":"0e9e39f249a16976918f6564b8830bc894c89659"}'
)
SPACE_ID = "6efab5ca0ca5cbd6ce1c171042f076128076a20d51f5d4038d600b29fac9b31c"

# Of layout version 2: packed elements of some layers; and a model's own layers and packing under an engine's hashes.
CANONICAL_V2 = (
    b'{"attention":"gqa","chunk_tokens":4,"codec":"raw","dtype":"BF16","hash_scheme":"kvgate-sha256-chain-v1",'
    b'"head_dim":8,"kv_heads":4,"layer_set":"0-1,5","layers":3,"layout_version":2,"lora":"none","model":"meta-llama/Llama-3.1-8B",'
    b'"multimodal":"none","packing":"vllm-cpu-amx-32",'
    b'"rope":{"beta":1e-7,"rope_theta":500000,"rope_type":"llama3","scaled":true,"short_factor":[1.5,2]},'
    b'"tokenizer":"sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",'
    b'"weights":"0e9e39f249a16976918f6564b8830bc894c89659"}'
)
SPACE_ID_V2 = "ffb26fd1576edd585af5c93312c8fbcbb941e0ec12d61750715c9baaf58badc8"
CANONICAL_VLLM = (
    CANONICAL_V2.replace(b'"0-1,5"', b'"all"')
    .replace(b'"vllm-cpu-amx-32"', b'"none"')
    .replace(b"kvgate-sha256-chain-v1", b"vllm-sha256-cbor-v1")
)
SPACE_ID_VLLM = "d74245f98f919f74ec2919889ec5a5a50e5a44c4be42cbd5add20eb1be4597ae"


def refused(manifest: object) -> InvalidManifest:
    with pytest.raises(InvalidManifest) as caught:
        Space.from_manifest(manifest)
    return caught.value


def test_canonical_form_and_id_are_the_golden_ones(space: Space) -> None:
    assert space.canonical_json() == CANONICAL
    assert space.id == SPACE_ID
    assert space.digest == bytes.fromhex(SPACE_ID)


def test_spelling_order_and_spacing_do_not_change_the_id(space: Space, manifest: dict[str, Any]) -> None:
    manifest["rope"] |= {"rope_theta": 500000, "beta": 0.0000001}
    assert Space.from_json(json.dumps(manifest, indent=3).encode()) == space
    assert Space.from_json(json.dumps(dict(reversed(manifest.items()))).encode()).id == SPACE_ID


def test_manifest_and_json_round_trip(space: Space) -> None:
    assert Space.from_manifest(space.manifest()) == space
    assert Space.from_canonical_json(space.canonical_json()) == space
    assert hashlib.sha256(space.canonical_json()).hexdigest() == space.id


def test_a_stored_manifest_must_be_in_canonical_form(space: Space, manifest: dict[str, Any]) -> None:
    for body in (space.canonical_json() + b"\n", json.dumps(manifest).encode(), CANONICAL.replace(b"1e-7", b"1e-07")):
        assert Space.from_json(body) == space
        with pytest.raises(InvalidManifest, match=f"canonical form.*{SPACE_ID}"):
            Space.from_canonical_json(body)


def test_manifests_of_version_2_and_their_ids_are_the_golden_ones(manifest_v2: dict[str, Any]) -> None:
    packed = Space.from_manifest(manifest_v2)
    assert (packed.canonical_json(), packed.id) == (CANONICAL_V2, SPACE_ID_V2)
    vllm = Space.from_manifest({**manifest_v2, "hash_scheme": VLLM_SHA256_CBOR, "packing": "none", "layer_set": "all"})
    assert (vllm.canonical_json(), vllm.id) == (CANONICAL_VLLM, SPACE_ID_VLLM)
    for made in (packed, vllm):
        assert Space.from_canonical_json(made.canonical_json()) == made == Space.from_manifest(made.manifest())


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_named(manifest: dict[str, Any], manifest_v2: dict[str, Any], name: str) -> None:
    for of_version in (manifest, manifest_v2):
        if of_version.pop(name, None) is not None and name != "layout_version":
            assert refused(of_version).field == name


def test_a_manifest_without_its_version_says_so(manifest: dict[str, Any], manifest_v2: dict[str, Any]) -> None:
    for of_version in (manifest, manifest_v2):
        del of_version["layout_version"]
        assert refused(of_version).field == "layout_version"


def test_fields_of_version_2_are_unknown_in_version_1(manifest: dict[str, Any]) -> None:
    assert set(manifest) == set(FIELDS_OF[1])
    assert refused({**manifest, "packing": "none"}).field == "packing"
    assert refused({**manifest, "layer_set": "all"}).field == "layer_set"
    assert refused({**manifest, "codec": "raw"}).field == "codec"


def test_a_space_has_one_layout_version(manifest: dict[str, Any], manifest_v2: dict[str, Any]) -> None:
    assert refused({**manifest_v2, "packing": "none", "layer_set": "all"}).field == "layout_version"
    for name, value in {"packing": "amx", "layer_set": "0-2", "hash_scheme": VLLM_SHA256, "codec": "int8"}.items():
        fields = {"hash_scheme": HASH_SCHEME, "packing": "none", "layer_set": "all", "codec": "raw"} | {name: value}
        assert layout_version_of(**fields) == 2
        assert Space.from_manifest({**manifest_v2, **fields}).layout_version == 2
        with pytest.raises(InvalidManifest, match="needs layout_version 2") as caught:
            Space(**{**manifest, **fields})
        assert caught.value.field == name
    assert layout_version_of(HASH_SCHEME) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, bad)
            for name in ("packing", "layer_set", "codec")
            for bad in (1, None, [], "", True, "x\n", "a" * 1025, "Ä")
        ),
        *(("codec", bad) for bad in ("none", "zstd", "int8")),  # lossless, and lossy of packed elements
        *(("packing", bad) for bad in ("AMX", "-amx", "amx 32", "a" * 129, "amx/32")),
        *(("layer_set", bad) for bad in ("0-1", "0-3", "all,1", "0,1,2", "5,0-1", "0-1,5,", "0-1, 5", "0-1,2")),
        ("layers", 4),
        ("layout_version", 1),
        ("layout_version", 3),
        ("layout_version", 2.0),
        ("layout_version", True),
        ("hash_scheme", "vllm-xxhash-v1"),
    ],
)
def test_a_bad_field_of_version_2_is_named(manifest_v2: dict[str, Any], name: str, value: object) -> None:
    culprits = {"layers": "layer_set", "layout_version": "packing" if value in (1, True) else "layout_version"}
    assert refused({**manifest_v2, name: value}).field == culprits.get(name, name)


def test_versions_differ_in_the_fields_that_say_why(space: Space, manifest_v2: dict[str, Any]) -> None:
    packed = Space.from_manifest(manifest_v2)
    assert space.difference(packed) == packed.difference(space) == ["layout_version", "packing", "layer_set"]
    other = Space.from_manifest({**manifest_v2, "layer_set": "2-4"})
    assert packed.difference(other) == ["layer_set"]
    assert len({space, packed, other}) == 3
    assert packed.layout == space.layout, "a packing moves elements within a run, and no run"


def test_an_unknown_field_is_named(manifest: dict[str, Any]) -> None:
    assert refused({**manifest, "tp_rank": 0}).field == "tp_rank"
    assert refused({**manifest, 7: 0}).field == "7"
    assert refused({**manifest, "digest": SPACE_ID}).field == "digest"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, 1)
            for name in FIELDS_OF[1]
            if name not in ("layers", "kv_heads", "head_dim", "chunk_tokens", "layout_version")
        ),
        *((name, None) for name in FIELDS_OF[1]),
        *((name, []) for name in FIELDS_OF[1]),
        *((name, "") for name in FIELDS_OF[1]),
        *((name, True) for name in FIELDS_OF[1]),
        *(
            (name, bad)
            for name in ("layers", "kv_heads", "head_dim", "chunk_tokens")
            for bad in (0, -1, 4.0, 10**30, "4")
        ),
        ("layout_version", 3),
        ("layout_version", 1.0),
        ("hash_scheme", "sha256"),
        ("dtype", "bfloat16"),
        ("dtype", "I64"),
        ("attention", "GQA"),
        pytest.param("model", "x" * 1025, id="model-too long"),
        ("model", "llama\n"),
        ("model", "llama\ud800"),
        ("weights", "\x00"),
        ("tokenizer", "llama-3-tokenizer"),
        ("tokenizer", "none"),
        ("tokenizer", "SHA256:" + "A" * 64),
        ("lora", "my-adapter"),
        ("lora", "sha256:0011"),
    ],
)
def test_an_ill_typed_empty_or_unbounded_field_is_named(manifest: dict[str, Any], name: str, value: object) -> None:
    assert refused({**manifest, name: value}).field == name


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        2**53,
        10**400,
        1e300,
        "\ud800",
        b"bytes",
        {1: 2},
        {"\ud800": 1},
        {1, 2},
        [[[[[[[[[[]]]]]]]]]],
    ],
)
def test_rope_holds_only_exact_json(manifest: dict[str, Any], value: object) -> None:
    error = refused({**manifest, "rope": {"factor": value}})
    assert error.field == "rope"
    assert "rope.factor" in str(error)


def test_mla_and_mqa_have_one_kv_head(manifest: dict[str, Any]) -> None:
    for attention in ("mla", "mqa"):
        assert refused({**manifest, "attention": attention}).field == "kv_heads"
        Space.from_manifest({**manifest, "attention": attention, "kv_heads": 1})


def test_layout_follows_the_manifest(manifest: dict[str, Any], space: Space) -> None:
    assert space.layout.shape == (3, 2, 4, 4, 8)
    assert space.layout.nbytes == 3 * 2 * 4 * 4 * 8 * 2
    mla = Space.from_manifest({**manifest, "attention": "mla", "kv_heads": 1, "head_dim": 576, "dtype": "F8_E4M3"})
    assert mla.layout.shape == (3, 1, 1, 4, 576)
    assert mla.layout.nbytes == 3 * 4 * 576


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", BODY),
        (b"[]", BODY),
        (b"null", BODY),
        (b"\xff", BODY),
        pytest.param(b"[" * 60_000, BODY, id="deep"),
        pytest.param(b'{"layers":' + b"9" * 5000 + b"}", BODY, id="long integer"),
        (b'{"model":"a","model":"b"}', "model"),
        (CANONICAL.replace(b"500000", b"NaN"), BODY),
        (CANONICAL.replace(b"500000", b"-Infinity"), BODY),
        (CANONICAL.replace(b"500000", b"1e999"), BODY),
        (CANONICAL.replace(b"llama3", b"\\ud800"), BODY),
        (CANONICAL.replace(b'"layers":3', b'"layers":3.0'), "layers"),
        (CANONICAL.replace(b'"layers":3', b'"layers":true'), "layers"),
        pytest.param(CANONICAL + b" " * MAX_MANIFEST_NBYTES, BODY, id="too long"),
    ],
)
def test_hostile_json_is_refused(body: bytes, field: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        Space.from_json(body)
    assert caught.value.field == field


def test_a_manifest_over_the_bound_is_refused_from_a_mapping_too(manifest: dict[str, Any]) -> None:
    assert refused({**manifest, "rope": {"long_factor": [0.123456789] * 10_000}}).field == BODY


def test_a_manifest_that_is_no_mapping_is_refused() -> None:
    assert refused([("model", "x")]).field == BODY


def test_difference_names_the_fields_that_differ(space: Space, manifest: dict[str, Any]) -> None:
    other = Space.from_manifest({**manifest, "dtype": "F16", "rope": {}, "weights": "main"})
    assert space.difference(other) == ["weights", "dtype", "rope"]
    assert space.difference(Space.from_manifest(manifest)) == []


def test_true_and_one_are_different_rope_values(manifest: dict[str, Any]) -> None:
    yes, one = (Space.from_manifest({**manifest, "rope": {"scaled": value}}) for value in (True, 1))
    assert yes != one
    assert len({yes, one}) == 2
    assert yes.difference(one) == ["rope"]


def test_a_space_cannot_be_changed(space: Space, manifest: dict[str, Any]) -> None:
    theirs = manifest["rope"]
    mine = Space.from_manifest(manifest)
    theirs["rope_theta"] = 1.0
    assert mine == space
    with pytest.raises(TypeError):
        mine.rope["rope_theta"] = 1.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        mine.layers = 4  # type: ignore[misc]
    mine.manifest()["rope"]["rope_theta"] = 1.0
    assert mine == space
    assert Space.from_manifest({**manifest, "rope": MappingProxyType(dict(space.rope))}) == space


rope_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53), 2.0**53, exclude_min=True, exclude_max=True)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(rope=st.dictionaries(st.text(max_size=8), rope_values, max_size=4), layers=st.integers(-1, 5000))
def test_any_accepted_manifest_round_trips_through_its_canonical_form(
    space: Space, rope: dict[str, Any], layers: int
) -> None:
    try:
        made = Space.from_manifest({**space.manifest(), "rope": rope, "layers": layers})
    except InvalidManifest as error:
        if error.field not in ("rope", "layers"):
            raise
        return
    stored = Space.from_canonical_json(made.canonical_json())
    assert stored == made
    assert stored.difference(made) == []
    assert Space.from_manifest(json.loads(json.dumps(made.manifest()))) == made


@given(position=st.integers(0, len(CANONICAL) - 1), byte=st.integers(0, 255))
def test_a_flipped_byte_never_keeps_the_id(position: int, byte: int) -> None:
    body = CANONICAL[:position] + bytes([byte]) + CANONICAL[position + 1 :]
    try:
        made = Space.from_canonical_json(body)
    except InvalidManifest:
        return
    assert (made.id == SPACE_ID) == (body == CANONICAL)
