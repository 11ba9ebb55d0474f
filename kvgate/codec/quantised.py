"""The lossy codecs: what each makes of keys, of values, and of the latent of MLA.

    k16v8      keys as they are; values in int8, a scale for each token and head
    k16v8-fp8  keys as they are; values in fp8 e4m3, a scale for each token and head
    int8, fp8  both, a scale for each token and head
    int4       keys by channel, a scale and a low for every 64 tokens; values by token, for every 64 channels

Where a head has more than 128 channels, int8 and fp8 have a scale for every 128 of them. A part's codes are the tensor
of its name, `k`, `v` or `kv`; beside it lie `k_scale` and, in int4, `k_low`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kvgate.chunk.dtype import ITEMSIZE
from kvgate.chunk.form import Tensor
from kvgate.chunk.layout import Layout
from kvgate.codec.lossy import Quantisers
from kvgate.errors import LayoutError

_CHANNEL_GROUP = 128
_INT4_GROUP = 64
_NUMBERS = ("F32", "BF16", "F16")


class _Scheme(Protocol):
    """How one part is kept. Shapes are those of one layer: [kv_heads, tokens, head_dim]."""

    def tensors(self, name: str, shape: tuple[int, int, int, int], dtype: str) -> dict[str, Tensor]: ...
    def encode(self, name: str, part: Any, dtype: str, out: Mapping[str, Any], quantisers: Quantisers) -> None: ...
    def decode(self, name: str, tensors: Mapping[str, Any], dtype: str, part: Any, quantisers: Quantisers) -> None: ...


class _AsItIs:
    def tensors(self, name: str, shape: tuple[int, int, int, int], dtype: str) -> dict[str, Tensor]:
        return {name: Tensor(dtype, shape)}

    def encode(self, name: str, part: Any, _dtype: str, out: Mapping[str, Any], quantisers: Quantisers) -> None:
        quantisers.copy(part, out[name])

    def decode(self, name: str, tensors: Mapping[str, Any], _dtype: str, part: Any, quantisers: Quantisers) -> None:
        quantisers.copy(tensors[name], part)


class _Int8:
    def tensors(self, name: str, shape: tuple[int, int, int, int], _dtype: str) -> dict[str, Tensor]:
        return {name: Tensor("I8", shape), f"{name}_scale": Tensor("BF16", _grouped(shape, 3, _CHANNEL_GROUP))}

    def encode(self, name: str, part: Any, dtype: str, out: Mapping[str, Any], quantisers: Quantisers) -> None:
        quantisers.int8_encode(part, dtype, out[name], out[f"{name}_scale"])

    def decode(self, name: str, tensors: Mapping[str, Any], dtype: str, part: Any, quantisers: Quantisers) -> None:
        quantisers.int8_decode(tensors[name], tensors[f"{name}_scale"], dtype, part)


class _Fp8:
    def tensors(self, name: str, shape: tuple[int, int, int, int], _dtype: str) -> dict[str, Tensor]:
        return {name: Tensor("F8_E4M3", shape), f"{name}_scale": Tensor("BF16", _grouped(shape, 3, _CHANNEL_GROUP))}

    def encode(self, name: str, part: Any, dtype: str, out: Mapping[str, Any], quantisers: Quantisers) -> None:
        quantisers.fp8_encode(part, dtype, out[name], out[f"{name}_scale"])

    def decode(self, name: str, tensors: Mapping[str, Any], dtype: str, part: Any, quantisers: Quantisers) -> None:
        quantisers.fp8_decode(tensors[name], tensors[f"{name}_scale"], dtype, part)


class _Int4:
    def __init__(self, axis: int) -> None:
        """axis: which one has groups, tokens (-2) or channels (-1)"""
        self._axis = axis

    def tensors(self, name: str, shape: tuple[int, int, int, int], _dtype: str) -> dict[str, Tensor]:
        groups = Tensor("BF16", _grouped(shape, self._axis % 4, _INT4_GROUP))
        return {name: Tensor("U8", _grouped(shape, 3, 2)), f"{name}_scale": groups, f"{name}_low": groups}

    def encode(self, name: str, part: Any, dtype: str, out: Mapping[str, Any], quantisers: Quantisers) -> None:
        quantisers.int4_encode(part, dtype, self._axis, out[name], out[f"{name}_scale"], out[f"{name}_low"])

    def decode(self, name: str, tensors: Mapping[str, Any], dtype: str, part: Any, quantisers: Quantisers) -> None:
        quantisers.int4_decode(tensors[name], tensors[f"{name}_scale"], tensors[f"{name}_low"], self._axis, dtype, part)


class ByPart:
    """See LossyCodec. Each part is kept by a scheme of its own."""

    name: str
    keys: _Scheme
    values: _Scheme
    latent: _Scheme | None

    def tensors(self, layout: Layout) -> dict[str, Tensor]:
        """See LossyCodec."""
        if layout.dtype not in _NUMBERS:
            raise LayoutError(f"{self.name} is for KV of {', '.join(_NUMBERS)}; this is of {layout.dtype}")
        if layout.parts == 1 and self.latent is None:
            raise LayoutError(f"{self.name} treats keys and values differently; the latent of MLA is both")
        shape = (layout.layers, layout.kv_heads, layout.tokens, layout.head_dim)
        found: dict[str, Tensor] = {}
        for name, scheme in self._schemes(layout.parts):
            found |= scheme.tensors(name, shape, layout.dtype)
        return dict(sorted(found.items(), key=lambda item: -ITEMSIZE[item[1].dtype]))

    def encode(self, kv: Any, dtype: str, out: Mapping[str, Any], quantisers: Quantisers) -> None:
        """See LossyCodec."""
        for index, (name, scheme) in enumerate(self._schemes(len(kv))):
            scheme.encode(name, kv[index], dtype, out, quantisers)

    def decode(self, tensors: Mapping[str, Any], dtype: str, out: Any, quantisers: Quantisers) -> None:
        """See LossyCodec."""
        for index, (name, scheme) in enumerate(self._schemes(len(out))):
            scheme.decode(name, tensors, dtype, out[index], quantisers)

    def _schemes(self, parts: int) -> list[tuple[str, _Scheme]]:
        if parts == 2:
            return [("k", self.keys), ("v", self.values)]
        assert self.latent is not None  # `tensors` has refused such a layout
        return [("kv", self.latent)]


class K16V8(ByPart):
    """See the module."""

    name = "k16v8"
    keys, values, latent = _AsItIs(), _Int8(), None


class K16V8Fp8(ByPart):
    """See the module."""

    name = "k16v8-fp8"
    keys, values, latent = _AsItIs(), _Fp8(), None


class Int8(ByPart):
    """See the module."""

    name = "int8"
    keys = values = latent = _Int8()


class Fp8(ByPart):
    """See the module."""

    name = "fp8"
    keys = values = latent = _Fp8()


class Int4(ByPart):
    """See the module."""

    name = "int4"
    keys, values, latent = _Int4(-2), _Int4(-1), _Int4(-1)


def _grouped(shape: tuple[int, ...], axis: int, group: int) -> tuple[int, ...]:
    return (*shape[:axis], -(-shape[axis] // group), *shape[axis + 1 :])
