"""Generation that takes the KV of a prompt's beginning from a gateway, and leaves new KV there.

1. The result is that of the model alone. A gateway that is down, slow or wrong never raises; it delays a request by at
   most `load_deadline_s`, and the requests right after it not at all.
2. Only KV whose tokens are known is stored, after the model has finished with the request, and without waiting for it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from engine_adapters.breaker import Breaker
from engine_adapters.transformers import kv_layout
from engine_adapters.transformers.background_store import BackgroundStore, NewChunks
from engine_adapters.transformers.generate_options import check_options
from engine_adapters.transformers.lora import without_peft
from engine_adapters.transformers.prefix_loader import Prefix, PrefixLoader
from engine_adapters.transformers.probe import CACHE_OPTION, empty_cache
from engine_adapters.transformers.space import LiveSpace
from engine_adapters.transformers.stats import Ledger, RequestStats, Totals
from kvgate.chunk.chain import chain_hashes
from kvgate.chunk.form import RAW
from kvgate.chunk.space import Space
from kvgate.client.credentials import find_credentials
from kvgate.client.sync import Client
from kvgate.codec.installed import codec_named, installed_names
from kvgate.errors import LayoutError

_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What was generated: the new token ids, without the prompt, and the text that they spell."""

    token_ids: list[int]
    text: str
    stats: RequestStats


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that went through the model.

    cache:  DynamicCache with the KV of every token of the prompt
    logits: (vocabulary,), of the token after the prompt
    """

    cache: Any
    logits: Any
    stats: RequestStats


class KVGateCache:
    """A causal language model whose prompts share KV through a gateway.

    Use it from one thread at a time; storing happens in a thread of its own.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        bucket: str,
        url: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        model_name: str | None = None,
        weights: str | None = None,
        chunk_tokens: int = 256,
        load_deadline_s: float = 2.0,
        put_deadline_s: float = 30.0,
        max_held_nbytes: int = 4 << 30,
        codec: str = RAW,
    ) -> None:
        """Hashes the model's weights (see `LiveSpace`); asks nothing of the gateway yet.

        bucket:                 must exist
        url, access_key, secret_key: see `find_credentials` for where they come from otherwise
        model_name, weights:    see `LiveSpace`
        load_deadline_s:        the longest that looking for KV and loading it may take, together
        put_deadline_s:         for each chunk, in the background
        max_held_nbytes:        of caches that wait to be stored; beyond it new chunks are dropped
        codec:                  of new chunks. A lossless one changes their size alone, and chunks in any other are
                                loaded too. With a lossy one the KV is that of other engines with the same codec only
        Raises UnsupportedModel naming what about the model cannot be named, ConfigError without a URL or key pair,
        InvalidManifest for a codec that is not known, or not for this model.
        """
        is_lossless = codec in installed_names()
        if is_lossless:
            codec_named(codec)  # raises now what would be missing later
        found = find_credentials(url, access_key, secret_key)
        self._client = Client(found.url, found.access_key, found.secret_key)
        self._model = model
        self._tokenizer = tokenizer
        # A long prompt's logits, over the whole vocabulary, can be larger than its KV.
        knows = "logits_to_keep" in inspect.signature(without_peft(model).forward).parameters
        self._last_logits = {"logits_to_keep": 1} if knows else {}
        self._live_space = LiveSpace(
            model,
            tokenizer,
            model_name=model_name,
            weights=weights,
            chunk_tokens=chunk_tokens,
            codec=RAW if is_lossless else codec,
        )
        self._ledger = Ledger()
        breaker = Breaker()
        self._loader = PrefixLoader(self._client, bucket, breaker, self._ledger, deadline_s=load_deadline_s)
        self._store = BackgroundStore(
            self._client,
            bucket,
            breaker,
            self._ledger,
            max_held_nbytes=max_held_nbytes,
            put_deadline_s=put_deadline_s,
            lossless=codec if is_lossless else RAW,
        )

    @property
    def space(self) -> Space:
        """The space of the model as it is now. Raises UnsupportedModel when it has none any more."""
        return self._live_space.now()

    def totals(self) -> Totals:
        """What was asked, reused, stored and dropped so far."""
        return self._ledger.totals()

    def generate(self, prompt: str | Sequence[int] | Any, **options: Any) -> GenerateResult:
        """What `model.generate` makes of one prompt.

        prompt:  text, token ids, or a tensor of token ids of shape (n,) or (1, n)
        options: of `model.generate`, as far as they concern one sequence and no input beside its tokens
        Raises UnsupportedModel for other options, and when the model has become one without a space.
        """
        start_s = time.perf_counter()
        check_options(options, self._model.generation_config)
        tokens = self._tokens(prompt)
        space, prefix, cache, stats = self._load(tokens)

        def note_first_token(sequence: Any, scores: Any, **_: Any) -> Any:
            if not stats.ttft_s:
                sequence[0, -1].item()  # on an accelerator the token exists when this returns, not before
                stats.ttft_s = time.perf_counter() - start_s
            return torch.zeros(sequence.shape[0], dtype=torch.bool, device=sequence.device)

        prompt_ids = torch.tensor([tokens], device=self._model.device)
        options["stopping_criteria"] = [*(options.get("stopping_criteria") or ()), note_first_token]
        output = self._model.generate(
            input_ids=prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),  # without it a pad token in the prompt would be masked
            **{CACHE_OPTION: cache},
            **options,
        )
        sequence = getattr(output, "sequences", output)[0].tolist()
        self._keep(space, prefix, sequence, [(layer.keys, layer.values) for layer in cache.layers])
        self._ledger.request(stats)
        new = sequence[len(tokens) :]
        return GenerateResult(new, self._tokenizer.decode(new, skip_special_tokens=True), stats)

    def prefill(self, prompt: str | Sequence[int] | Any) -> Prefilled:
        """The KV of a whole prompt, loaded or computed, for a caller with a decoding loop of its own.

        The cache is the caller's: what is to be stored is copied out of it before this returns.
        """
        tokens = self._tokens(prompt)
        space, prefix, cache, stats = self._load(tokens)
        rest = torch.tensor([tokens[stats.reused_tokens :]], device=self._model.device)
        with torch.no_grad():
            output = self._model(input_ids=rest, use_cache=True, **{CACHE_OPTION: cache}, **self._last_logits)
        if len(prefix.chain) - 1 > prefix.held_chunks:
            self._keep(space, prefix, tokens, [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers])
        self._ledger.request(stats)
        return Prefilled(cache, output.logits[0, -1], stats)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every new chunk so far was stored or given up; False when that took longer."""
        return self._store.flush(timeout_s)

    def close(self) -> None:
        """Store what is waiting, for at most 10 s, and let go of the gateway. May be called twice."""
        self._store.close(_CLOSE_S)
        self._client.close()

    def __enter__(self) -> KVGateCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tokens(self, prompt: str | Sequence[int] | Any) -> list[int]:
        if isinstance(prompt, str):
            prompt = self._tokenizer(prompt)["input_ids"]
        tokens = torch.as_tensor(prompt)
        if tokens.ndim == 2 and len(tokens) == 1:
            tokens = tokens[0]
        if tokens.ndim != 1 or not len(tokens):
            raise ValueError(f"expected the tokens of one prompt, got a shape of {list(tokens.shape)}")
        return [int(token) for token in tokens.tolist()]

    def _load(self, tokens: list[int]) -> tuple[Space, Prefix, Any, RequestStats]:
        space = self._live_space.now()
        cache = empty_cache(self._model)
        stats = RequestStats(asked_tokens=len(tokens))
        prefix = self._loader.load(space, tokens, cache, self._model.device, stats)
        stats.computed_tokens = len(tokens) - stats.reused_tokens
        return space, prefix, cache, stats

    def _keep(self, space: Space, prefix: Prefix, sequence: list[int], layers: list[tuple[Any, Any]]) -> None:
        """Hand the full chunks of `sequence` that the gateway does not hold to the background."""
        if not prefix.chain:  # without the tenant's salt nothing has a name
            return
        # The last generated token has no KV yet.
        tokens = min(len(sequence), layers[0][0].shape[2])
        hashed = (len(prefix.chain) - 1) * space.chunk_tokens
        chain = [*prefix.chain, *chain_hashes(prefix.chain[-1], sequence[hashed:tokens], space.chunk_tokens)]
        new = NewChunks(space, chain, prefix.held_chunks, layers)
        if not new.indices:
            return
        try:
            kv_layout.check_cache(layers, space.layout, new.indices.stop * space.chunk_tokens)
        except LayoutError as error:
            self._ledger.failed(f"LayoutError: {error}", len(new.indices))
        else:
            self._store.submit(new)
