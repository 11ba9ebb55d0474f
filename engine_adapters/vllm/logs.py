"""Our log lines among vLLM's."""

from __future__ import annotations

import logging

_OURS = ("engine_adapters", "kvgate")


def log_as_vllm() -> None:
    """Have what kvgate logs written where vLLM writes its own, from the same level on; what is set up already stays."""
    of_vllm = logging.getLogger("vllm")
    for name in _OURS:
        ours = logging.getLogger(name)
        if not ours.handlers and ours.level == logging.NOTSET:
            ours.setLevel(of_vllm.level)
            for handler in of_vllm.handlers:
                ours.addHandler(handler)
            ours.propagate = of_vllm.propagate
