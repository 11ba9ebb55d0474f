"""Digests of tensors: dtype, shape and bytes, wherever they lie."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from kvgate.errors import UnsupportedModel


def tensor_digest(name: str, tensor: Any) -> bytes:
    """sha256 over the dtype, shape and little-endian bytes of `tensor`, 32 bytes.

    Raises UnsupportedModel, with `name`, for a tensor whose bytes do not say all: a subclass (quantised, sharded) or
    one on the meta device (offloaded).
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise UnsupportedModel(f"the state {name} is a {type(tensor).__name__}, not a plain tensor")
    if tensor.is_meta:
        raise UnsupportedModel(f"the weight {name} is offloaded; its bytes cannot be read")
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(memoryview(plain.view(torch.uint8).numpy()))
    return digest.digest()
