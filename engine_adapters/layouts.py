"""The layouts of the engines' paged KV: one table, and the checks that a tensor is what its layout says.

A layout names the axes of the tensors that an engine hands out for one layer, outermost first:

    B  pages            P  parts: K, then V       H  KV heads of this rank
    N  tokens of a page D  head_dim, or the latent dimension of MLA
    1  an axis of one   (XY)  one axis of the tensor that counts X outermost and Y innermost

Which of these comes first in memory is told by the tensor's strides, so that one line of the table holds every order
in which an engine may have allocated it, padding between pages and tokens included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import torch

from kvgate.chunk.space import NO_PACKING
from kvgate.errors import LayoutError


@dataclass(frozen=True, slots=True)
class EngineLayout:
    """A line of the table.

    axes:    see the module
    origin:  who lays its KV out like this
    packed:  tokens and head_dim are packed together within a (page, part, head), in a way that depends on the machine
    """

    axes: str
    origin: str
    packed: bool = False

    @property
    def parts(self) -> int:
        """2, or 1 where a token has one latent instead of K and V."""
        return 2 if "H" in self.axes else 1

    @property
    def tensors(self) -> int:
        """How many tensors a layer has."""
        return 1 if "P" in self.axes else self.parts


LAYOUTS: Mapping[str, EngineLayout] = MappingProxyType(
    {
        "vllm": EngineLayout("BHN(PD)", "vLLM >= 0.26, in memory LBNHC, LBHNC, BLNHC, BLHNC, LHBNC or BHLNC"),
        "vllm-planes": EngineLayout("BPN(HD)", "vLLM >= 0.26 with the b12x backend"),
        "vllm-cpu": EngineLayout("BH(PN)D", "vLLM >= 0.26 with the CPU backend", packed=True),
        "vllm-mla": EngineLayout("B1ND", "vLLM >= 0.26, MLA"),
        "flash-attn": EngineLayout("PBNHD", "vLLM < 0.26 with FlashAttention, NHD, or HND by its strides"),
        "flashinfer-nhd": EngineLayout("BPNHD", "FlashInfer NHD, and vLLM < 0.26 with FlashInfer or Triton"),
        "flashinfer-hnd": EngineLayout("BPHND", "FlashInfer HND"),
        "mla": EngineLayout("BND", "vLLM < 0.26 and FlashInfer, MLA"),
        "sglang": EngineLayout("(BN)HD", "SGLang's MHA pool: a tensor of K and one of V"),
        "sglang-fused": EngineLayout("(BN)(HP)D", "K and V in turn, head by head, as SGLang on JAX"),
        "sglang-mla": EngineLayout("(BN)1D", "SGLang's MLA pool"),
    }
)
"""Every layout that is known, by name."""

DTYPES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "F32": (torch.float32,),
        "F16": (torch.float16,),
        "BF16": (torch.bfloat16,),
        "F8_E4M3": (torch.float8_e4m3fn, torch.uint8),
        "F8_E5M2": (torch.float8_e5m2, torch.uint8),
        "I8": (torch.int8,),
        "U8": (torch.uint8,),
    }
)
"""The dtypes of a chunk, and the torch dtypes in which engines hold them: fp8 is often kept as bytes."""

_HELD = tuple(dict.fromkeys(dtype for held in DTYPES.values() for dtype in held))
_AXIS = re.compile(r"\(([A-Z]+)\)|([A-Z1])")


@dataclass(frozen=True, slots=True)
class Pages:
    """One layer of an engine's paged KV, as an affine map: where each byte lies, nothing copied.

    views:   one of each part, K and V or the latent alone: (pages, kv_heads, page_tokens, head_dim) over the engine's
             own memory, with any strides but that of head_dim, which is contiguous
    packing: `NO_PACKING`, or the tag of how tokens and head_dim are packed within a (page, head) of a part: that run of
             bytes is contiguous and opaque, so that only whole pages can be moved
    pages_per_block: pages that the engine counts as one block; block b is the pages b * pages_per_block and following
    Raises LayoutError.
    """

    views: tuple[Any, ...]
    packing: str = NO_PACKING
    pages_per_block: int = 1

    def __post_init__(self) -> None:
        if len(self.views) not in (1, 2):
            raise LayoutError(f"a layer has K and V, or one latent; got {len(self.views)} views")
        first = self.views[0]
        for view in self.views:
            if view.dim() != 4 or 0 in view.shape:
                raise LayoutError(f"a view is (pages, kv_heads, page_tokens, head_dim), got {_told(view)}")
            if (view.shape, view.dtype, view.device) != (first.shape, first.dtype, first.device):
                raise LayoutError(f"K is {_told(first)} and V is {_told(view)}; they must be alike")
            if view.dtype not in _HELD:
                raise LayoutError(f"{view.dtype} is not a dtype of KV; known: {', '.join(map(str, _HELD))}")
            if view.stride(3) != 1:
                raise LayoutError(f"the elements of a head must be contiguous, got {_told(view)}")
            if _overlaps(view):
                raise LayoutError(f"elements share their memory: {_told(view)}")
            if self.packing != NO_PACKING and view.shape[2] > 1 and view.stride(2) != view.shape[3]:
                raise LayoutError(f"a packed page must be contiguous within a head, got {_told(view)}")
        if len(self.views) == 2 and self.views[0].data_ptr() == self.views[1].data_ptr():
            raise LayoutError("K and V are the same memory")
        if self.pages_per_block < 1 or first.shape[0] % self.pages_per_block:
            raise LayoutError(f"{first.shape[0]} pages are not blocks of {self.pages_per_block}")

    @property
    def parts(self) -> int:
        return len(self.views)

    @property
    def blocks(self) -> int:
        """Blocks, as the engine counts them: ids are below it."""
        return int(self.views[0].shape[0]) // self.pages_per_block

    @property
    def kv_heads(self) -> int:
        return int(self.views[0].shape[1])

    @property
    def page_tokens(self) -> int:
        return int(self.views[0].shape[2])

    @property
    def block_tokens(self) -> int:
        return self.page_tokens * self.pages_per_block

    @property
    def head_dim(self) -> int:
        return int(self.views[0].shape[3])

    @property
    def dtype(self) -> Any:
        """The torch dtype in which the engine holds it."""
        return self.views[0].dtype

    @property
    def device(self) -> Any:
        return self.views[0].device


def pages_of(
    name: str,
    *tensors: Any,
    kv_heads: int,
    head_dim: int,
    block_tokens: int,
    head_dim_v: int | None = None,
    row_elements: int | None = None,
    packing: str = NO_PACKING,
) -> Pages:
    """The pages of one layer.

    name:         a line of `LAYOUTS`
    tensors:      what the engine has for this layer: one tensor, or K and V
    kv_heads:     heads of this rank; 1 for MLA
    head_dim:     elements of a head and token; the latent dimension for MLA
    block_tokens: tokens of a block, as the engine counts them; a tensor may have smaller pages (kernel blocks) that
                  divide it
    head_dim_v:   where the engine tells it apart: must be head_dim
    row_elements: elements of a token in the tensor where it has more of them than head_dim: the rest is padding, and
                  stays as it is. Only for MLA.
    packing:      the tag of a packed layout (see `engine_adapters.packing`)
    Raises LayoutError that names what was found and what is accepted.
    """
    layout = LAYOUTS.get(name)
    if layout is None:
        raise LayoutError(f"unknown layout {name!r}; known: {', '.join(LAYOUTS)}")
    if head_dim_v not in (None, head_dim):
        raise LayoutError(
            f"V has {head_dim_v} elements a head, and K has {head_dim}: a chunk has one head_dim for both"
        )
    if len(tensors) != layout.tensors:
        raise LayoutError(f"a layer of {name} has {layout.tensors} tensors, got {len(tensors)}")
    if layout.packed != (packing != NO_PACKING):
        expected = "the tag of a packing" if layout.packed else repr(NO_PACKING)
        raise LayoutError(f"the packing of {name} is {expected}, got {packing!r}")
    if layout.parts == 1 and kv_heads != 1:
        raise LayoutError(f"{name} has one head, got kv_heads={kv_heads}")
    if row_elements is not None and (layout.parts != 1 or row_elements < head_dim):
        raise LayoutError(f"row_elements={row_elements} of {name} with head_dim={head_dim}: only a latent has padding")
    sizes = {"P": layout.parts, "H": kv_heads, "D": head_dim if row_elements is None else row_elements, "1": 1}
    if any(size < 1 for size in (*sizes.values(), head_dim, block_tokens)):
        raise LayoutError(f"nothing of it can be empty: kv_heads={kv_heads}, head_dim={head_dim}, {block_tokens=}")
    views: list[Any] = []
    for tensor in tensors:
        views += _views(name, layout, tensor, sizes, head_dim, block_tokens)
    page_tokens = int(views[0].shape[2])
    if block_tokens % page_tokens:
        raise LayoutError(f"pages of {page_tokens} tokens do not divide blocks of {block_tokens}")
    return Pages(tuple(views), packing, block_tokens // page_tokens)


def of_vllm(cache: Any, spec: Any, packing: str = NO_PACKING) -> Pages:
    """The pages of one layer of vLLM >= 0.26.

    cache:   the view [B, H, N, C] that vLLM registers with a connector
    spec:    the `vllm.v1.kv_cache_interface.AttentionSpec` of that layer, with the block size by which ids are counted
    packing: the tag of the CPU backend's packing; none for MLA, and on other devices
    Raises LayoutError for states that are not K and V, or a latent, of one token and head each.
    """
    if spec.num_head_slots is not None:
        raise LayoutError(
            f"vLLM's backend has {spec.num_head_slots} slots in place of heads, in an order that only it knows; where "
            "that is b12x's, it is the layout vllm-planes"
        )
    if spec.tokens_per_state != 1:
        raise LayoutError(f"vLLM keeps one state of {spec.tokens_per_state} tokens; accepted is one a token")
    elements = spec.head_size + spec.head_size_v
    if spec.state_content_size_bytes != elements * spec.dtype.itemsize:
        raise LayoutError(
            f"vLLM keeps {spec.state_content_size_bytes} bytes a token and head, which are not {elements} {spec.dtype} "
            "of K and V: scales, or the codes of a quantised cache"
        )
    if cache.dtype != spec.dtype:
        raise LayoutError(f"vLLM's spec says {spec.dtype}, and its cache is {_told(cache)}")
    latent = spec.head_size_v == 0
    plain = "vllm" if packing == NO_PACKING else "vllm-cpu"
    return pages_of(
        "vllm-mla" if latent else plain,
        cache,
        kv_heads=spec.num_kv_heads,
        head_dim=spec.head_size,
        head_dim_v=spec.head_size if latent else spec.head_size_v,
        block_tokens=spec.block_size,
        packing=packing,
    )


def _views(
    name: str, layout: EngineLayout, tensor: Any, known: Mapping[str, int], head_dim: int, block_tokens: int
) -> list[Any]:
    """One view (B, H, N, head_dim) of each part that the tensor has."""
    if layout.packed:
        tensor = _regrouped(name, tensor, head_dim)
    groups = [joined or single for joined, single in _AXIS.findall(layout.axes)]
    if tensor.dim() != len(groups):
        raise LayoutError(f"{name} is {layout.axes}, {len(groups)} axes, got {_told(tensor)}")
    sizes, strides = dict(known), {"H": head_dim, "P": 0}
    for axis, (letters, size) in enumerate(zip(groups, tensor.shape, strict=True)):
        if letters == "BN":
            sizes["N"] = block_tokens
        unknown = [letter for letter in letters if letter not in sizes]
        fixed = prod(sizes[letter] for letter in letters if letter in sizes)
        if size % fixed or (size != fixed and not unknown) or not size:
            names = ", ".join(f"{letter}={sizes[letter]}" for letter in letters if letter in sizes)
            raise LayoutError(f"axis {axis} of {name} ({layout.axes}) does not hold {names}: {_told(tensor)}")
        for letter in unknown:  # there is one at most, B or N
            sizes[letter] = size // fixed
        stride = tensor.stride(axis)
        for letter in reversed(letters):
            strides[letter] = stride
            stride *= sizes[letter]
    shape = [sizes["B"], sizes["H"], sizes["N"], head_dim]
    return [
        tensor.as_strided(shape, [strides[letter] for letter in "BHND"], tensor.storage_offset() + part * strides["P"])
        for part in range(sizes["P"] if "P" in layout.axes else 1)
    ]


def _regrouped(name: str, cache: Any, head_dim: int) -> Any:
    """[B, H, N, 2 * head_dim] as [B, H, 2 * N, head_dim]: all of K before all of V in each (page, head).

    Source: CPUAttentionBackendImpl.forward in vLLM's v1/attention/backends/cpu_attn.py.
    """
    if cache.dim() != 4 or cache.shape[3] != 2 * head_dim:
        raise LayoutError(f"{name} is handed out as [B, H, N, 2 * head_dim] of head_dim={head_dim}, got {_told(cache)}")
    pages, heads, tokens, _ = cache.shape
    try:
        return cache.view(pages, heads, 2 * tokens, head_dim)
    except RuntimeError as error:
        raise LayoutError(f"a page of {name} must be contiguous within a head, got {_told(cache)}") from error


def _overlaps(view: Any) -> bool:
    """Whether two elements may have one address: each stride must step over all that is inside of it."""
    inside = 1
    for stride, size in sorted(pair for pair in zip(view.stride(), view.shape, strict=True) if pair[1] > 1):
        if stride < inside:
            return True
        inside += stride * (size - 1)
    return False


def _told(tensor: Any) -> str:
    return f"{tensor.dtype} of shape {list(tensor.shape)} and strides {list(tensor.stride())}"
