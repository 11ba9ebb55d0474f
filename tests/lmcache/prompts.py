"""Prompts and their KV, the same in every process: what one stores, another one can compare with what it loads."""

from __future__ import annotations

import zlib
from typing import Any

import torch


def prompt(seed: int, tokens: int, tail_seed: int = 0, tail: int = 0, **_: Any) -> list[int]:
    """`tokens` token ids out of `seed`, then `tail` ones out of `tail_seed`."""
    return [*_tokens(seed, tokens), *_tokens(tail_seed, tail)]


def chunk_kv(tokens: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """The KV of the last chunk of `tokens`, bf16 of all bit patterns. As in a model, all tokens before it count."""
    seed = zlib.crc32(repr(tokens).encode())
    bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=torch.Generator().manual_seed(seed))
    return bits.view(torch.bfloat16)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether all bits are equal; NaN is equal to itself here."""
    return torch.equal(one.contiguous().view(torch.int16), other.contiguous().view(torch.int16))


def _tokens(seed: int, count: int) -> list[int]:
    return torch.randint(0, 32_000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
