"""Where each line of the table says that an element lies, and what it refuses."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine_adapters.layouts import LAYOUTS, Pages, pages_of
from engine_adapters.packing import packing_tag
from kvgate.errors import LayoutError
from tests.engine_adapters.paged import ENGINES, Shape

pytestmark = pytest.mark.engine

SHAPE = Shape(layers=2, blocks=3, heads=2, tokens=4, dim=8)

# Element 3 of token 2 of head 1 of block 1 in layer 1 of SHAPE: its place in the allocation, counted in elements, as
# layer + block + head + token + element. Then the place of the same of V, or None for a latent, which has one head.
PLACES = {
    "vllm LBHNC": (384 + 128 + 64 + 2 * 16 + 3, 619),
    "vllm LBNHC": (384 + 128 + 16 + 2 * 32 + 3, 603),
    "vllm LHBNC": (384 + 64 + 192 + 2 * 16 + 3, 683),
    "vllm BLHNC": (128 + 256 + 64 + 2 * 16 + 3, 491),
    "vllm BLNHC": (128 + 256 + 16 + 2 * 32 + 3, 475),
    "vllm BHLNC": (64 + 256 + 128 + 2 * 16 + 3, 491),
    "vllm LBNHC, kernel blocks": (384 + 3 * 64 + 16 + 0 * 32 + 3, 603),  # page 3, which begins with token 2
    "vllm LBHNC, kernel blocks": (384 + 3 * 64 + 32 + 0 * 16 + 3, 619),
    "vllm LBNHC, padded pages": (456 + 152 + 16 + 2 * 32 + 3, 699),
    "vllm planes": (384 + 128 + 8 + 2 * 16 + 3, 619),
    "vllm cpu": (384 + 128 + 64 + 2 * 8 + 3, 627),
    "vllm cpu, kernel blocks": (384 + 3 * 64 + 32 + 0 * 8 + 3, 627),
    "vllm mla": (96 + 32 + 2 * 8 + 3, None),
    "vllm mla, padded pages": (216 + 72 + 2 * 8 + 3, None),
    "vllm mla, padded rows": (192 + 64 + 2 * 16 + 3, None),
    "flash-attn NHD": (64 + 8 + 2 * 16 + 3, 299),  # of here on each layer has tensors of its own
    "flash-attn HND": (64 + 32 + 2 * 8 + 3, 307),
    "flashinfer NHD": (128 + 8 + 2 * 16 + 3, 235),
    "flashinfer NHD, HND by strides": (128 + 32 + 2 * 8 + 3, 243),
    "flashinfer HND": (128 + 32 + 2 * 8 + 3, 243),
    "mla": (96 + 32 + 2 * 8 + 3, None),
    "mla, padded pages and rows": (240 + 80 + 2 * 16 + 3, None),
    "sglang": (64 + 8 + 2 * 16 + 3, 107),
    "sglang fused": (128 + 16 + 2 * 32 + 3, 219),
    "sglang mla": (32 + 2 * 8 + 3, None),
}


def place(pages: Pages, part: int, block: int, head: int, token: int, element: int) -> int:
    view = pages.views[part]
    page, offset = divmod(block * pages.block_tokens + token, pages.page_tokens)
    nbytes = view[page, head, offset, element].data_ptr() - view.untyped_storage().data_ptr()
    return int(nbytes) // view.element_size()


@pytest.mark.parametrize("name", ENGINES)
def test_an_element_lies_where_it_was_worked_out_by_hand(name: str) -> None:
    engine = ENGINES[name]
    shape = SHAPE if engine.parts == 2 else Shape(layers=2, blocks=3, heads=1, tokens=4, dim=8)
    pages = engine.pages(shape, engine.allocate(shape))[1]
    key, value = PLACES[name]
    assert place(pages, 0, 1, shape.heads - 1, 2, 3) == key
    if value is None:
        assert pages.parts == 1
    else:
        assert place(pages, 1, 1, 1, 2, 3) == value


@pytest.mark.parametrize("name", ENGINES)
def test_pages_tell_their_shape(name: str) -> None:
    engine = ENGINES[name]
    shape = SHAPE if engine.parts == 2 else Shape(layers=2, blocks=3, heads=1, tokens=4, dim=8)
    tensors = engine.allocate(shape)
    pages = engine.pages(shape, tensors)[0]
    assert (pages.blocks, pages.parts, pages.kv_heads, pages.block_tokens, pages.head_dim) == (
        shape.blocks,
        engine.parts,
        shape.heads,
        shape.tokens,
        shape.dim,
    )
    assert pages.page_tokens == (2 if "kernel blocks" in name else 4)
    assert pages.dtype == torch.bfloat16
    assert pages.device == torch.device("cpu")
    assert {view.untyped_storage().data_ptr() for view in pages.views} == {
        tensor.untyped_storage().data_ptr() for tensor in tensors[0]
    }


def test_every_line_of_the_table_is_tried() -> None:
    assert {engine.name for engine in ENGINES.values()} == set(LAYOUTS)


def cache(*shape: int, dtype: Any = torch.bfloat16) -> Any:
    return torch.zeros(shape, dtype=dtype)


SIZES: dict[str, Any] = {"kv_heads": 2, "head_dim": 8, "block_tokens": 4}
LATENT = {"kv_heads": 1, "head_dim": 8, "block_tokens": 4}


@pytest.mark.parametrize(
    ("name", "tensors", "options", "message"),
    [
        ("vllm-gpu", [cache(3, 2, 4, 16)], SIZES, "unknown layout 'vllm-gpu'; known: vllm, "),
        ("vllm", [cache(3, 2, 4, 16)], SIZES | {"head_dim_v": 4}, "V has 4 elements a head, and K has 8"),
        ("vllm", [cache(3, 2, 4, 12)], SIZES, r"axis 3 of vllm \(BHN\(PD\)\) does not hold P=2, D=8"),
        ("vllm", [cache(3, 2, 4, 32)], SIZES, "axis 3"),
        ("vllm", [cache(3, 4, 4, 16)], SIZES, r"axis 1 .* does not hold H=2: torch.bfloat16 of shape \[3, 4, 4, 16\]"),
        ("vllm", [cache(3, 2, 3, 16)], SIZES, "pages of 3 tokens do not divide blocks of 4"),
        ("vllm", [cache(3, 2, 8, 16)], SIZES, "pages of 8 tokens do not divide blocks of 4"),
        ("vllm", [cache(3, 2, 2, 16)], SIZES, "3 pages are not blocks of 2"),
        ("vllm", [cache(3, 2, 4, 2, 8)], SIZES, "4 axes, got"),
        ("vllm", [cache(0, 2, 4, 16)], SIZES, "axis 0"),
        ("vllm", [cache(3, 2, 4, 16), cache(3, 2, 4, 16)], SIZES, "a layer of vllm has 1 tensors, got 2"),
        ("vllm", [cache(3, 2, 4, 16, dtype=torch.int64)], SIZES, "torch.int64 is not a dtype of KV"),
        ("vllm", [cache(3, 2, 4, 16, dtype=torch.float8_e4m3fnuz)], SIZES, "fnuz is not a dtype of KV"),
        ("vllm", [cache(3, 2, 4, 16)], SIZES | {"packing": "amx"}, "packing of vllm is 'none', got 'amx'"),
        ("vllm", [cache(3, 2, 4, 16)], SIZES | {"row_elements": 16}, "only a latent has padding"),
        ("vllm", [cache(3, 2, 4, 16)], SIZES | {"head_dim": 0}, "nothing of it can be empty"),
        ("vllm", [cache(3, 2, 4, 32)[..., ::2]], SIZES, "must be contiguous"),
        ("vllm", [cache(1, 2, 4, 16).expand(3, 2, 4, 16)], SIZES, "share their memory"),
        ("vllm", [cache(200).as_strided((3, 2, 4, 16), (48, 16, 16, 1))], SIZES, "share their memory"),
        ("vllm-cpu", [cache(3, 2, 4, 16)], SIZES, "packing of vllm-cpu is the tag of a packing"),
        ("vllm-cpu", [cache(3, 4, 2, 16).mT], SIZES | {"packing": "x"}, "2 \\* head_dim"),
        ("vllm-cpu", [cache(3, 4, 2, 16).transpose(1, 2)], SIZES | {"packing": "x"}, "contiguous within a head"),
        ("vllm-mla", [cache(3, 1, 4, 12)], LATENT, "axis 3"),
        ("vllm-mla", [cache(3, 1, 4, 12)], LATENT | {"row_elements": 16}, "does not hold D=16"),
        ("vllm-mla", [cache(3, 1, 4, 8)], LATENT | {"row_elements": 6}, "only a latent has padding"),
        ("vllm-mla", [cache(3, 2, 4, 8)], LATENT, "axis 1"),
        ("mla", [cache(3, 4, 8)], LATENT | {"kv_heads": 2}, "mla has one head, got kv_heads=2"),
        ("flash-attn", [cache(3, 2, 4, 2, 8)], SIZES, "axis 0 of flash-attn"),
        ("flashinfer-nhd", [cache(3, 2, 2, 4, 8)], SIZES | {"kv_heads": 3}, "axis 3"),
        ("sglang", [cache(12, 2, 8)], SIZES, "has 2 tensors, got 1"),
        ("sglang", [cache(13, 2, 8), cache(13, 2, 8)], SIZES, r"axis 0 of sglang \(\(BN\)HD\) does not hold N=4"),
        ("sglang", [cache(12, 2, 8), cache(12, 2, 4)], SIZES, "axis 2"),
        ("sglang", [cache(12, 2, 8), cache(16, 2, 8)], SIZES, "must be alike"),
        ("sglang", [cache(12, 2, 8), cache(12, 2, 8, dtype=torch.float16)], SIZES, "must be alike"),
        ("sglang", [cache(12, 2, 8)] * 2, SIZES, "K and V are the same memory"),
    ],
)
def test_a_tensor_that_is_not_of_the_layout_is_refused(
    name: str, tensors: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        pages_of(name, *tensors, **options)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ((), "got 0 views"),
        ((cache(3, 2, 4, 8),) * 3, "got 3 views"),
        ((cache(3, 2, 8),), r"a view is \(pages, kv_heads, page_tokens, head_dim\)"),
    ],
)
def test_views_that_are_no_pages_are_refused(views: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Pages(views)


def test_packed_pages_are_contiguous_within_a_head() -> None:
    with pytest.raises(LayoutError, match="a packed page must be contiguous"):
        Pages((cache(3, 2, 4, 16)[..., :8],), packing="x")


# --- packing ----------------------------------------------------------------------------------------------------------


def rows_as_they_are(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
    key_cache[0, 0, slots], value_cache[0, 0, slots] = key[:, 0].to(key_cache.dtype), value[:, 0].to(key_cache.dtype)


def keys_across(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
    key_cache.view(key.shape[2], -1)[:, slots] = key[:, 0].T.to(key_cache.dtype)
    value_cache[0, 0, slots] = value[:, 0].to(key_cache.dtype)


def values_across(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
    keys_across(value, key, value_cache, key_cache, slots)


DTYPE = torch.bfloat16


def test_a_tag_tells_packings_apart() -> None:
    tags = [packing_tag("vec", 32, 64, DTYPE, DTYPE, write) for write in (rows_as_they_are, keys_across, values_across)]
    tags.append(packing_tag("vec", 32, 64, DTYPE, torch.float8_e4m3fn, keys_across))
    tags.append(packing_tag("vec", 64, 64, DTYPE, DTYPE, keys_across))
    tags.append(packing_tag("vec", 32, 32, DTYPE, DTYPE, keys_across))
    assert len(set(tags)) == len(tags)
    assert tags[1] == packing_tag("vec", 32, 64, DTYPE, DTYPE, keys_across)


def test_a_tag_does_not_depend_on_the_process_or_the_release_of_torch() -> None:
    assert packing_tag("vec", 32, 64, DTYPE, DTYPE, keys_across) == "vllm-cpu-vec-32-64-a2f55b19"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float32])
def test_the_pattern_of_a_tag_is_exact_in_every_dtype(dtype: Any) -> None:
    seen: list[Any] = []

    def write(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
        seen.append(key)
        keys_across(key, value, key_cache, value_cache, slots)

    packing_tag("vec", 32, 64, torch.float32, dtype, write)
    assert torch.equal(seen[0], seen[0].to(dtype).to(torch.float32))


def test_a_page_that_is_not_filled_has_no_tag() -> None:
    def half(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
        rows_as_they_are(key[:16], value[:16], key_cache, value_cache, slots[:16])

    with pytest.raises(LayoutError, match="left bytes of a page of 32 x 64"):
        packing_tag("vec", 32, 64, DTYPE, DTYPE, half)
