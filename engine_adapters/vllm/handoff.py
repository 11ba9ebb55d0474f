"""What a prefill instance tells a decode instance of a prompt, through whatever routes requests between them.

The names are those of vLLM's own proxies: a request with `do_remote_decode` is prefilled to be decoded elsewhere, and
what comes back with its answer goes into the request to the decode instance. The KV itself goes through the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHUNKS = "kvgate_chunks"
_MAX_CHUNKS = 1 << 20


def is_asked_for(params: Mapping[str, Any] | None) -> bool:
    """Whether a request with these `kv_transfer_params` is to be decoded elsewhere."""
    return bool(params and params.get("do_remote_decode"))


def announcement(params: Mapping[str, Any] | None, chunks: int) -> dict[str, Any] | None:
    """What goes back with a request of these `kv_transfer_params`; None unless it is to be decoded elsewhere.

    chunks: how many of the prompt are in the gateway, or about to be
    """
    if not is_asked_for(params):
        return None
    return {"do_remote_prefill": True, "do_remote_decode": False, _CHUNKS: chunks}


def expected_chunks(params: Mapping[str, Any] | None) -> int:
    """How many chunks a request may wait for: those that were announced for it. 0 for what is no announcement."""
    if not params or not params.get("do_remote_prefill"):
        return 0
    chunks = params.get(_CHUNKS)
    return chunks if type(chunks) is int and 0 <= chunks <= _MAX_CHUNKS else 0
