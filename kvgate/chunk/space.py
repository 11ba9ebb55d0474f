"""Spaces: everything that must be equal for two chunks to be interchangeable.

1. Every field of its layout version is required in a manifest. A missing, unknown or ill-typed one is an error, never a
   default.
2. The canonical form is RFC 8785 JSON; its sha256 names the space, and the manifest object is exactly these bytes.
3. TP and PP ranks are not among the fields: a chunk does not depend on how its engine is sharded.
4. A space has one layout version: 2 when its hashes, its packing, its layers or its codec are not those of version 1,
   else 1. The manifests of version 1 are the bytes they always were.
5. A lossy codec is a field, because KV that went through it is other KV, and so is what is computed from it. A lossless
   one is not: a chunk may be in any of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import rfc8785

from kvgate import strict_json
from kvgate.chunk.form import RAW, Stored, stored_form
from kvgate.chunk.layer_set import ALL_LAYERS, MAX_LAYERS, parse_layer_set
from kvgate.chunk.layout import Layout
from kvgate.errors import InvalidManifest, LayoutError

MAX_MANIFEST_NBYTES = 64 * 1024
HASH_SCHEME = "kvgate-sha256-chain-v1"
VLLM_SHA256_CBOR = "vllm-sha256-cbor-v1"
VLLM_SHA256 = "vllm-sha256-v1"
LAYOUT_VERSION = 1
"""Of a space whose chunks hold every layer as `Layout` says, under hashes of HASH_SCHEME."""
EXTENDED_LAYOUT_VERSION = 2
"""Of all others."""
NO_LORA = "none"
NO_PACKING = "none"

BODY = "(body)"
"""`InvalidManifest.field` when the fault lies in the manifest as a whole."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": ("F32", "BF16", "F16", "F8_E4M3", "F8_E5M2", "I8", "U8"),
    "attention": ("mha", "gqa", "mqa", "mla"),
    "hash_scheme": (HASH_SCHEME, VLLM_SHA256_CBOR, VLLM_SHA256),
}
_OF_VERSION_1 = {"hash_scheme": HASH_SCHEME, "packing": NO_PACKING, "layer_set": ALL_LAYERS, "codec": RAW}
_LIMITS = {"layers": MAX_LAYERS, "kv_heads": 4096, "head_dim": 1 << 16, "chunk_tokens": 1 << 16}
_MAX_TEXT_CHARS = 1024
_MAX_ROPE_DEPTH = 8
_EXACT_LIMIT = 2**53
_DIGEST = re.compile(r"(?:[a-z0-9]+[:-])?[0-9a-f]{32,128}")
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """A checked space manifest. Two spaces are equal exactly when their ids are.

    model:          name, as the engine serves it
    weights:        revision or digest of the weights
    tokenizer:      digest, e.g. of tokenizer.json: at least 32 hex digits, with or without a prefix such as `sha256:`
    dtype:          of the stored KV, in safetensors names
    kv_heads:       of the whole model, not of one rank; 1 for mqa and mla
    head_dim:       elements a head and token; the latent dimension for mla
    rope:           every parameter that changes the rotation; {} says that the model has none
    lora:           adapter digest, or the word none
    multimodal:     how image and audio inputs enter the chain hash, or the word none
    hash_scheme:    who makes the chain hashes, and how; under one of vLLM's they are its own block hashes
    layout_version: as `layout_version_of` says
    packing:        how an engine orders the elements of each run of a layer, part and head: a tag that only engines
                    understand, or the word none for kv[…, tokens, head_dim]
    layer_set:      which of the model's layers `layers` counts, as `spell_layer_set` writes it
    codec:          the lossy codec that the KV went through, by its name in `kvgate.lossy_codecs`, or the word raw
    packing, layer_set and codec are in the manifests of layout version 2 only.
    Raises InvalidManifest, whose `field` names the culprit.
    """

    model: str
    weights: str
    tokenizer: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    attention: str
    rope: Mapping[str, Any]
    lora: str
    multimodal: str
    chunk_tokens: int
    hash_scheme: str
    layout_version: int
    packing: str = NO_PACKING
    layer_set: str = ALL_LAYERS
    codec: str = RAW

    layout: Layout = field(init=False, repr=False)
    """Of the KV of one whole chunk, all layers and heads."""
    stored: Stored = field(init=False, repr=False)
    """The tensors of a chunk that no lossless codec has made smaller."""
    digest: bytes = field(init=False, repr=False)
    """sha256 of the canonical JSON, 32 bytes."""
    id: str = field(init=False, repr=False)
    """The digest as 64 lower-case hex digits: the name of the space in keys."""
    _canonical: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("model", "weights", "tokenizer", "lora", "multimodal", "packing", "layer_set", "codec", *_CHOICES):
            _check_text(name, getattr(self, name))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InvalidManifest(name, f"expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, limit in _LIMITS.items():
            _check_count(name, getattr(self, name), limit)
        if self.attention in ("mqa", "mla") and self.kv_heads != 1:
            raise InvalidManifest("kv_heads", f"{self.attention} attention has 1, got {self.kv_heads}")
        _check_digest("tokenizer", self.tokenizer)
        if self.lora != NO_LORA:
            _check_digest("lora", self.lora, f", or {NO_LORA!r}")
        self._check_version()
        if not _TAG.fullmatch(self.packing):
            raise InvalidManifest("packing", f"expected a tag of a-z, 0-9, '.', '_' and '-', got {self.packing[:64]!r}")
        if self.layer_set != ALL_LAYERS:
            _check_layer_set(self.layer_set, self.layers)
        if not isinstance(self.rope, Mapping):
            raise InvalidManifest("rope", f"expected an object of parameters, got {_describe(self.rope)}")
        rope = _plain_json(self.rope, "rope", depth=0)

        canonical = rfc8785.dumps({**self._members(FIELDS_OF[self.layout_version]), "rope": rope})
        if len(canonical) > MAX_MANIFEST_NBYTES:
            raise InvalidManifest(BODY, f"{len(canonical)} bytes; at most {MAX_MANIFEST_NBYTES} are accepted")
        digest = hashlib.sha256(canonical).digest()
        parts = 1 if self.attention == "mla" else 2
        layout = Layout(self.layers, parts, self.kv_heads, self.chunk_tokens, self.head_dim, self.dtype)
        derived = {"layout": layout, "stored": self._stored(layout), "rope": _read_only(rope)}
        named = {"digest": digest, "id": digest.hex(), "_canonical": canonical}
        for name, value in {**derived, **named}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_manifest(cls, manifest: object) -> Space:
        """The space that a mapping of exactly these fields describes. Raises InvalidManifest."""
        if not isinstance(manifest, Mapping):
            raise InvalidManifest(BODY, f"expected an object, got {_describe(manifest)}")
        version = manifest.get("layout_version")
        known = FIELDS_OF.get(version) if isinstance(version, int) else None
        for name in manifest:
            if name not in (known or FIELDS):
                raise InvalidManifest(str(name)[:64], f"unknown; the fields are {', '.join(known or FIELDS)}")
        for name in known or FIELDS_OF[LAYOUT_VERSION]:
            if name not in manifest:
                raise InvalidManifest(name, "missing; every field must be given")
        return cls(**manifest)

    @classmethod
    def from_json(cls, body: bytes) -> Space:
        """The space that a JSON manifest describes, in whatever order and spacing. Raises InvalidManifest."""
        if len(body) > MAX_MANIFEST_NBYTES:
            raise InvalidManifest(BODY, f"{len(body)} bytes; at most {MAX_MANIFEST_NBYTES} are accepted")
        try:
            manifest = strict_json.loads(body)
        except strict_json.JSONRefused as error:
            raise InvalidManifest(error.name or BODY, str(error)) from None
        return cls.from_manifest(manifest)

    @classmethod
    def from_canonical_json(cls, body: bytes) -> Space:
        """The space of a stored manifest, whose bytes must be the canonical form, so that sha256(body) is its id.

        Raises InvalidManifest for any other spelling of a valid manifest too.
        """
        space = cls.from_json(body)
        if body != space.canonical_json():
            raise InvalidManifest(BODY, f"not in canonical form (RFC 8785), which would be the manifest of {space.id}")
        return space

    def manifest(self) -> dict[str, Any]:
        """A fresh dict of the fields of its layout version, as plain JSON values; `from_manifest` takes it back."""
        return {**self._members(FIELDS_OF[self.layout_version]), "rope": _plain_json(self.rope, "rope", depth=0)}

    def canonical_json(self) -> bytes:
        """The manifest by RFC 8785: the body of `kv/<id>/manifest.json`."""
        return self._canonical

    def difference(self, other: Space) -> list[str]:
        """The names of the fields in which the two differ, in field order; empty exactly when they are equal."""
        mine, theirs = (space._members(FIELDS) | space.manifest() for space in (self, other))
        return [name for name in FIELDS if rfc8785.dumps(mine[name]) != rfc8785.dumps(theirs[name])]

    @property
    def has_foreign_hashes(self) -> bool:
        """Whether an engine makes the chain hashes, so that headers of chunks name neither parent nor place."""
        return self.hash_scheme != HASH_SCHEME

    def _members(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    def _stored(self, layout: Layout) -> Stored:
        if self.codec != RAW and self.packing != NO_PACKING:
            raise InvalidManifest("codec", f"{self.codec[:64]!r} needs numbers that no engine has packed")
        try:
            return stored_form(self.codec, layout)
        except LayoutError as error:
            raise InvalidManifest("codec", str(error)) from None

    def _check_version(self) -> None:
        if type(self.layout_version) is not int or self.layout_version not in FIELDS_OF:
            accepted = " or ".join(map(str, FIELDS_OF))
            raise InvalidManifest("layout_version", f"expected {accepted}, got {_describe(self.layout_version)}")
        needed = layout_version_of(self.hash_scheme, self.packing, self.layer_set, self.codec)
        if self.layout_version < needed:
            culprit = next(name for name, value in _OF_VERSION_1.items() if getattr(self, name) != value)
            raise InvalidManifest(culprit, f"{getattr(self, culprit)[:64]!r} needs layout_version {needed}")
        if self.layout_version > needed:
            raise InvalidManifest("layout_version", f"this is a space of layout_version {needed}; one has one spelling")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


FIELDS = tuple(entry.name for entry in fields(Space) if entry.init)
"""The names of all fields a manifest may have, in order."""

FIELDS_OF: Mapping[int, tuple[str, ...]] = {LAYOUT_VERSION: FIELDS[:-3], EXTENDED_LAYOUT_VERSION: FIELDS}
"""The names of the fields that the manifests of a layout version have: these, and no other."""


def layout_version_of(
    hash_scheme: str, packing: str = NO_PACKING, layer_set: str = ALL_LAYERS, codec: str = RAW
) -> int:
    """The one layout version of a space with these fields."""
    plain = (hash_scheme, packing, layer_set, codec) == tuple(_OF_VERSION_1.values())
    return LAYOUT_VERSION if plain else EXTENDED_LAYOUT_VERSION


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidManifest(name, f"expected a string, got {_describe(value)}")
    if not value:
        raise InvalidManifest(name, "empty")
    if len(value) > _MAX_TEXT_CHARS:
        raise InvalidManifest(name, f"{len(value)} characters; at most {_MAX_TEXT_CHARS} are accepted")
    if _UNPRINTABLE.search(value):
        raise InvalidManifest(name, "holds a control character or a lone surrogate")


def _check_count(name: str, value: object, limit: int) -> None:
    if type(value) is not int or not 1 <= value <= limit:
        raise InvalidManifest(name, f"expected an integer from 1 to {limit}, got {_describe(value)}")


def _check_digest(name: str, value: str, alternative: str = "") -> None:
    # A name would stay the same when the thing it names is retrained; only a digest tells the two apart.
    if not _DIGEST.fullmatch(value):
        raise InvalidManifest(name, f"expected a digest of 32 to 128 lower-case hex digits{alternative}, got {value!r}")


def _check_layer_set(value: str, layers: int) -> None:
    try:
        named = sum(map(len, parse_layer_set(value)))
    except LayoutError as error:
        raise InvalidManifest("layer_set", str(error)) from None
    if named != layers:
        raise InvalidManifest("layer_set", f"it names {named} layers, the field layers says {layers}")


def _plain_json(value: object, path: str, depth: int) -> Any:
    """A deep copy of `value` in dict, list and scalars that survives a round trip through canonical JSON."""
    if depth > _MAX_ROPE_DEPTH:
        raise InvalidManifest("rope", f"{path}: nested deeper than {_MAX_ROPE_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if _UNPRINTABLE.search(value):
            raise InvalidManifest("rope", f"{path}: holds a control character or a lone surrogate")
        return value
    if isinstance(value, int | float):
        # Canonical JSON spells 1e16 as digits, which no reader could tell from an integer that a double cannot hold.
        if not -_EXACT_LIMIT < value < _EXACT_LIMIT:  # nor is NaN within
            raise InvalidManifest("rope", f"{path}: expected a finite number of magnitude below 2**53")
        return value
    if isinstance(value, list | tuple):
        return [_plain_json(item, f"{path}[{position}]", depth + 1) for position, item in enumerate(value)]
    if isinstance(value, Mapping):
        members = {}
        for name, item in value.items():
            if not isinstance(name, str) or _UNPRINTABLE.search(name):
                raise InvalidManifest("rope", f"{path}: a name that is not a printable string")
            members[name] = _plain_json(item, f"{path}.{name}", depth + 1)
        return members
    raise InvalidManifest("rope", f"{path}: expected a JSON value, got {_describe(value)}")


def _read_only(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({name: _read_only(item) for name, item in value.items()})
    if isinstance(value, list):
        return tuple(_read_only(item) for item in value)
    return value


def _describe(value: object) -> str:
    if isinstance(value, int | float) and -_EXACT_LIMIT < value < _EXACT_LIMIT:
        return f"{type(value).__name__} {value!r}"
    return type(value).__name__
