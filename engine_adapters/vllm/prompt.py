"""The names of a request's chunks: chain hashes of its tokens, one chain for each group of layers."""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections.abc import Sequence
from typing import Any

import rfc8785
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys

from engine_adapters.vllm.multimodal import is_named_by_caller
from kvgate.chunk.chain import chain_hashes, root
from kvgate.chunk.space import Space
from kvgate.errors import UnsupportedModel


class Chains:
    """The chain hashes of one request, made as its tokens come.

    What else than tokens makes KV differ (images, prompt embeddings, the request's cache salt) is what vLLM puts into
    its own block hashes, chunk by chunk. The LoRA adapter is left out there: it is in the space. Thread-safe: a lookup
    that is late still names chunks while the scheduler goes on.
    """

    def __init__(self, request: Any, spaces: Sequence[Space], salt: bytes) -> None:
        """spaces: one a group; salt: the tenant's"""
        self.spaces = tuple(spaces)
        self._request = request
        self._chunk_tokens = spaces[0].chunk_tokens
        self._chains = [[root(space.digest, salt)] for space in spaces]
        self._next_feature = 0
        self._lock = threading.Lock()

    @property
    def chunks(self) -> int:
        """How many have a name so far."""
        return len(self._chains[0]) - 1

    def extend(self, tokens: Sequence[int], chunks: int) -> None:
        """Name chunks until there are `chunks`. tokens: all of the request, of which the first of these are known.

        Raises ValueError for tokens, and UnsupportedModel for inputs, that cannot be named.
        """
        with self._lock:
            first = self.chunks
            if chunks <= first:
                return
            extras = [self._extra(index) for index in range(first, chunks)]
            new = tokens[first * self._chunk_tokens : chunks * self._chunk_tokens]
            for chain in self._chains:
                chain.extend(chain_hashes(chain[-1], new, self._chunk_tokens, extras))

    def hash(self, group: int, chunk: int) -> bytes:
        """The hash of a chunk; of chunk -1 the root, which is the first one's parent."""
        return self._chains[group][chunk + 1]

    def hashes(self, group: int, chunks: range) -> list[bytes]:
        """The hashes of chunks that follow one another."""
        return self._chains[group][chunks.start + 1 : chunks.stop + 1]

    def _extra(self, chunk: int) -> bytes:
        start, stop = chunk * self._chunk_tokens, (chunk + 1) * self._chunk_tokens
        keys, self._next_feature = generate_block_hash_extra_keys(self._request, start, stop, self._next_feature)
        named = [_plain(key) for key in keys or () if key[0] != "lora"]
        return rfc8785.dumps(named) if named else b""


def prompt_digest(request: Any, spaces: Sequence[Space]) -> bytes:
    """What two requests have in common when the KV of their whole prompts is the same; sha256.

    Raises ValueError for tokens, and UnsupportedModel for inputs, that cannot be named.
    """
    if is_named_by_caller(request):
        raise UnsupportedModel("an image or audio input has a name of its caller's, which others may have too")
    count = request.num_prompt_tokens
    keys, _ = generate_block_hash_extra_keys(request, 0, count, 0)
    digest = hashlib.sha256(b"".join(space.digest for space in spaces))
    digest.update(rfc8785.dumps([_plain(key) for key in keys or ()]) + b"\0")
    digest.update(array("Q", request.all_token_ids[:count]).tobytes())
    return digest.digest()


def _plain(key: Any) -> Any:
    if isinstance(key, str | int) or key is None:
        return key
    if isinstance(key, bytes):
        return ["bytes", key.hex()]
    if isinstance(key, tuple | list):
        return [_plain(part) for part in key]
    raise UnsupportedModel(f"an input whose name is a {type(key).__name__}; text, numbers and bytes are accepted")
