"""What a lossy codec is: the numbers of one layer in fewer bytes, and back with an error that the codec bounds.

KV that went through it is other KV, so the space of its chunks names it. It is registered in the entry-point group
`kvgate.lossy_codecs`, and its name must mean the same bytes for ever. It imports no array library, because the gateway
asks it for its tensors; the numbers are worked on by the `Quantisers` that it is handed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kvgate import plugins
from kvgate.chunk.form import LOSSY_GROUP, Tensor
from kvgate.chunk.layout import Layout


class Quantisers(Protocol):
    """kvgate.kernels.quantise, or a module that gives the same bits for arrays of another kind."""

    def int8_encode(self, numbers: Any, dtype: str, codes: Any, scales: Any) -> None: ...
    def int8_decode(self, codes: Any, scales: Any, dtype: str, out: Any) -> None: ...
    def fp8_encode(self, numbers: Any, dtype: str, codes: Any, scales: Any) -> None: ...
    def fp8_decode(self, codes: Any, scales: Any, dtype: str, out: Any) -> None: ...
    def int4_encode(self, numbers: Any, dtype: str, axis: int, codes: Any, scales: Any, lows: Any) -> None: ...
    def int4_decode(self, codes: Any, scales: Any, lows: Any, axis: int, dtype: str, out: Any) -> None: ...
    def copy(self, numbers: Any, out: Any) -> None: ...


class LossyCodec(Protocol):
    """The same bits give the same bits, both ways. May be used in several threads."""

    name: str

    def tensors(self, layout: Layout) -> Mapping[str, Tensor]:
        """See kvgate.chunk.form.Form."""

    def encode(self, kv: Any, dtype: str, out: Mapping[str, Any], quantisers: Quantisers) -> None:
        """Write one layer of each tensor.

        kv: [parts, kv_heads, tokens, head_dim] of `dtype`; what is not finite and cannot be kept poisons a scale
        """

    def decode(self, tensors: Mapping[str, Any], dtype: str, out: Any, quantisers: Quantisers) -> None:
        """Write one layer of KV. Raises ValueError for what `encode` does not make of finite KV."""


def lossy_codec(name: str) -> LossyCodec:
    """The codec of a name. Raises ConfigError when it is not installed."""
    codec: LossyCodec = plugins.load(LOSSY_GROUP, name)()
    return codec
