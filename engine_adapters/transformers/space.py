"""The space of a Hugging Face model: the name of its KV, or the reason why it has none.

Built from the model as it lies in memory, not from where it came from: no path, repository or commit hash decides it.
Whatever is not known to be named exactly is refused.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from engine_adapters.transformers.lora import LoraLayers, without_peft
from engine_adapters.transformers.probe import probe
from engine_adapters.transformers.weights import base_tensors, weights_digest
from engine_adapters.transformers.witness import Witness
from kvgate.chunk.form import RAW
from kvgate.chunk.space import HASH_SCHEME, Space, layout_version_of
from kvgate.errors import UnsupportedModel

_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
"""RoPE kinds whose rotation of a token depends on its position alone. `dynamic` and `longrope` look at the length of
the whole sequence too, so that a prefix does not always have the same KV."""

_REMEMBERED_ADAPTERS = 64


class LiveSpace:
    """The space of a model that may change under way: adapters are switched, weights are loaded or trained.

    What changes KV without being seen here: values written through `tensor.data`, forward hooks, and modules or a
    configuration that are edited in place.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        model_name: str | None = None,
        weights: str | None = None,
        chunk_tokens: int = 256,
        codec: str = RAW,
    ) -> None:
        """
        model_name: how people call it; by default `<model type>/<class>`
        weights:    a digest or revision that the caller vouches for, until the weights change; by default they are
                    hashed, which takes about a second for each GB and core
        codec:      the lossy one that KV goes through
        Raises UnsupportedModel, InvalidManifest.
        """
        self._model = model
        self._codec = codec
        self._tokenizer = tokenizer_digest(tokenizer)
        self._model_name = model_name
        self._chunk_tokens = chunk_tokens
        check_model(model)
        lora = LoraLayers(model)
        self._weights = weights or weights_digest(model, lora)
        self._weights_seen = Witness(base_tensors(model, lora))
        self._spaces: list[tuple[list[tuple[str, float]], Witness, Space]] = []
        self.now()

    def now(self) -> Space:
        """The space of the model as it is; in milliseconds when it has been in this state before.

        Raises UnsupportedModel when it has become one without a space.
        """
        model = self._model
        check_model(model)
        lora = LoraLayers(model)
        tensors = base_tensors(model, lora)
        if not self._weights_seen.unchanged(tensors):
            self._weights = weights_digest(model, lora)
            self._weights_seen = Witness(tensors)
            self._spaces.clear()
        active, active_tensors = lora.active(), lora.active_tensors()
        for remembered, seen, space in self._spaces:
            if remembered == active and seen.unchanged(active_tensors):
                return space
        space = self._named(lora)
        self._spaces = [(active, Witness(active_tensors), space), *self._spaces[: _REMEMBERED_ADAPTERS - 1]]
        return space

    def _named(self, lora: LoraLayers) -> Space:
        config = self._model.config
        kv = probe(self._model)
        return Space(
            model=self._model_name or f"{config.model_type}/{type(without_peft(self._model)).__name__}",
            weights=self._weights,
            tokenizer=self._tokenizer,
            dtype=kv.dtype,
            layers=kv.layers,
            kv_heads=kv.kv_heads,
            head_dim=kv.head_dim,
            attention=_attention(config.num_attention_heads, kv.kv_heads),
            rope=_rope(config),
            lora=lora.digest(),
            multimodal="none",
            chunk_tokens=self._chunk_tokens,
            hash_scheme=HASH_SCHEME,
            layout_version=layout_version_of(HASH_SCHEME, codec=self._codec),
            codec=self._codec,
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 over everything that turns text into tokens: 64 hex digits.

    Padding and truncation are left out, because calls change them, and so is the chat template: chain hashes cover the
    tokens themselves, so a prompt from another template is another prompt, not another tokenizer.
    Raises UnsupportedModel for a tokenizer without a serialised form.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModel(f"the tokenizer {type(tokenizer).__name__} has no serialised form to hash")
    form = json.loads(backend.to_str())
    for volatile in ("padding", "truncation"):
        form.pop(volatile, None)
    return hashlib.sha256(json.dumps(form, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_model(model: Any) -> None:
    """Accept a model whose KV is a function of its weights and the tokens so far. Raises UnsupportedModel."""
    reason = next(_reasons_against(model), None)
    if reason is not None:
        raise UnsupportedModel(f"{type(model).__name__}: {reason}")


def _reasons_against(model: Any) -> Iterator[str]:
    config = model.config
    if sys.byteorder != "little":
        yield "safetensors hold little-endian numbers, and this machine's are big-endian"
    if config.is_encoder_decoder:
        yield "an encoder-decoder; its KV depends on the encoder's input"
    if config.get_text_config(decoder=True) is not config:
        yield "a multimodal model; image and audio inputs are not in the chain hash"
    if getattr(config, "use_bidirectional_attention", False):
        yield "bidirectional attention; KV depends on later tokens"
    if torch.is_autocast_enabled(model.device.type):
        yield "autocast is on, so that the dtype of the KV is not the model's own"
    if model.training:
        yield "in training mode, in which dropout changes KV; call model.eval()"
    if len({tensor.device for tensor in chain(model.parameters(), model.buffers())}) != 1:
        yield "spread over several devices"
    rope = getattr(config, "rope_parameters", None)
    kind = rope.get("rope_type") if isinstance(rope, dict) else None
    if kind not in _STATIC_ROPE:
        known = ", ".join(sorted(_STATIC_ROPE))
        yield f"its positions come from {kind or 'no single set of rope_parameters'}; named is RoPE of kind {known}"


def _rope(config: Any) -> dict[str, Any]:
    rope = dict(config.rope_parameters)
    if rope["rope_type"] == "yarn":  # the one static kind that may derive its scale from this
        rope["max_position_embeddings"] = config.max_position_embeddings
    return rope


def _attention(heads: int, kv_heads: int) -> str:
    if kv_heads == heads:
        return "mha"
    return "mqa" if kv_heads == 1 else "gqa"
