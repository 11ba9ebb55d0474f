"""Chunks out of every engine's pages and into them, against what the engine's own indexing wrote."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapters.layouts import Pages, pages_of
from engine_adapters.paged_copy import SKIP, HostCopy, PagedCopy, TorchCopy
from engine_adapters.staging import Plan, plan
from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError, LayoutMismatch
from tests.engine_adapters.paged import ENGINES, Engine, Shape, Tensors, bits, noise, pack

pytestmark = pytest.mark.engine

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
}
BLOCKS_PER_CHUNK = 2
HEADER = 4096


def shape_of(engine: Engine, **changes: Any) -> Shape:
    """A shape that the engine can have: one head where its tokens have one latent."""
    return replace(Shape(), **changes) if engine.parts == 2 else replace(Shape(), **changes, heads=1)


def layout_of(engine: Engine, shape: Shape, *, blocks: int = BLOCKS_PER_CHUNK, dtype: str = "BF16") -> Layout:
    return Layout(shape.layers, engine.parts, shape.heads, blocks * shape.tokens, shape.dim, dtype)


def rows(count: int, nbytes: int, *, stride: int = 0) -> Any:
    """Where chunks lie in real use: after a header, in rows of a larger buffer."""
    return torch.randint(0, 256, (count, HEADER + max(stride, nbytes)), dtype=torch.uint8)[:, HEADER:][:, :nbytes]


def fill(engine: Engine, tensors: Tensors, kv: Any, ids: list[list[int]]) -> None:
    """Have the engine write chunks kv (chunks, layers, parts, heads, tokens, dim) to these blocks."""
    for chunk, blocks in zip(kv, ids, strict=True):
        for layer, tensor in zip(chunk, tensors, strict=True):
            for part, block in zip(layer.chunk(len(blocks), dim=2), blocks, strict=True):
                engine.write(tensor, block, part)


def expected(engine: Engine, shape: Shape, tensors: Tensors, kv: Any) -> Any:
    """The bytes that chunks must have: the KV itself, or what the engine packs of it, page by page."""
    if engine.name != "vllm-cpu":
        return bits(kv).flatten(1)
    pages = kv.unflatten(4, (-1, tensors[0][0].shape[2]))
    packed = pages.transpose(5, 6).flatten(5).view(pages.shape)
    return bits(packed).flatten(1)


def random_ids(shape: Shape, chunks: int, per_chunk: int) -> list[list[int]]:
    return torch.randperm(shape.blocks)[: chunks * per_chunk].view(chunks, per_chunk).tolist()


def memory(tensors: Tensors) -> Any:
    """Every byte of an engine's pages, padding included."""
    storages = {tensor.untyped_storage().data_ptr(): tensor for layer in tensors for tensor in layer}
    return torch.cat([torch.tensor([], dtype=torch.uint8).set_(each.untyped_storage()) for each in storages.values()])


each_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
COPIES = {"host": HostCopy(), "torch": TorchCopy()}
each_copy = pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())


@each_engine
@each_copy
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_gives_the_kv_that_the_engine_wrote(engine: Engine, copy: PagedCopy, dtype: str) -> None:
    shape = shape_of(engine, dtype=DTYPES[dtype], layers=3)
    tensors = engine.allocate(shape)
    kv = noise(2, 3, engine.parts, shape.heads, 2 * shape.tokens, shape.dim, dtype=shape.dtype)
    ids = random_ids(shape, 2, 2)
    fill(engine, tensors, kv, ids)
    made = plan(layout_of(engine, shape, dtype=dtype), engine.pages(shape, tensors), copy=copy)
    out = rows(2, made.slice_nbytes)
    made.gather(ids, out)
    assert torch.equal(out, expected(engine, shape, tensors, kv))


@each_engine
@each_copy
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_writes_what_the_engine_would_have_and_nothing_else(
    engine: Engine, copy: PagedCopy, dtype: str
) -> None:
    shape = shape_of(engine, dtype=DTYPES[dtype], layers=3)
    mine = engine.allocate(shape)
    theirs = [tuple(tensor for tensor in layer) for layer in mine]
    kv = noise(2, 3, engine.parts, shape.heads, 2 * shape.tokens, shape.dim, dtype=shape.dtype)
    ids = random_ids(shape, 2, 2)
    before = memory(mine).clone()
    fill(engine, theirs, kv, ids)
    after = memory(mine).clone()
    _restore(mine, before)
    source = rows(2, 3 * kv[0, 0].nbytes)
    source.copy_(expected(engine, shape, mine, kv))
    plan(layout_of(engine, shape, dtype=dtype), engine.pages(shape, mine), copy=copy).scatter(ids, source)
    assert not torch.equal(after, before)
    assert torch.equal(memory(mine), after)


def _restore(tensors: Tensors, content: Any) -> None:
    storages = {tensor.untyped_storage().data_ptr(): tensor for layer in tensors for tensor in layer}
    start = 0
    for each in storages.values():
        whole = torch.tensor([], dtype=torch.uint8).set_(each.untyped_storage())
        whole.copy_(content[start : start + whole.numel()])
        start += whole.numel()


def test_packing_of_the_tests_is_not_the_identity() -> None:
    part = noise(2, 4, 8, dtype=torch.bfloat16)
    assert not torch.equal(bits(pack(part)), bits(part))


def made_for(engine: Engine, shape: Shape, *, copy: PagedCopy | None = None, **changes: Any) -> tuple[Plan, Tensors]:
    tensors = engine.allocate(shape)
    return plan(layout_of(engine, shape, **changes), engine.pages(shape, tensors), copy=copy), tensors


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_chunk_has_the_same_bytes_whatever_engine_it_comes_from(data: Any) -> None:
    """And what is gathered from one engine, and scattered into another, is there what the other would have written."""
    parts = data.draw(st.sampled_from([1, 2]))
    alike = [name for name, engine in ENGINES.items() if engine.parts == parts and engine.name != "vllm-cpu"]
    names = data.draw(st.tuples(st.sampled_from(alike), st.sampled_from(alike)))
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    tokens = data.draw(st.sampled_from([2, 4, 6]))
    per_chunk = data.draw(st.integers(1, 4))
    chunks = data.draw(st.integers(0, 3))
    shape = Shape(
        layers=data.draw(st.integers(1, 3)),
        blocks=per_chunk * 3 + data.draw(st.integers(0, 3)),
        heads=1 if parts == 1 else data.draw(st.integers(1, 3)),
        tokens=tokens,
        dim=8,  # row_elements of the padded ones is for this
        dtype=DTYPES[dtype],
    )
    kv = noise(chunks, shape.layers, parts, shape.heads, per_chunk * tokens, shape.dim, dtype=shape.dtype)
    layout = Layout(shape.layers, parts, shape.heads, per_chunk * tokens, shape.dim, dtype)
    gathered = []
    for name in names:
        engine = ENGINES[name]
        tensors = engine.allocate(shape)
        ids = data.draw(st.permutations(range(shape.blocks)))[: chunks * per_chunk]
        table = [ids[start : start + per_chunk] for start in range(0, len(ids), per_chunk)]
        fill(engine, tensors, kv, table)
        made = plan(layout, engine.pages(shape, tensors), copy=data.draw(st.sampled_from(list(COPIES.values()))))
        gathered.append(rows(chunks, made.slice_nbytes))
        made.gather(table, gathered[-1])
        if len(gathered) == 2:
            after = memory(tensors).clone()
            made.scatter(table, gathered[0])
            assert torch.equal(memory(tensors), after)
    assert torch.equal(gathered[0], gathered[1])
    assert torch.equal(gathered[0], bits(kv).view(chunks, layout.nbytes) if chunks else gathered[0])


@each_engine
def test_a_rank_has_its_layers_and_heads(engine: Engine) -> None:
    """Layers 1 and 2 of four, heads 1 and 2 of four: the bytes of kv[1:3, :, 1:3] of the whole chunk."""
    layers, heads = (range(1, 3), range(1, 3) if engine.parts == 2 else range(1))
    shape = shape_of(engine)
    model = replace(shape, layers=4, heads=4 if engine.parts == 2 else 1)
    kv = noise(1, 4, engine.parts, model.heads, 2 * shape.tokens, shape.dim, dtype=shape.dtype)
    mine = kv[:, layers.start : layers.stop, :, heads.start : heads.stop]
    tensors = engine.allocate(shape)
    fill(engine, tensors, mine, [[3, 0]])
    made = plan(layout_of(engine, model), engine.pages(shape, tensors), heads)
    out = rows(1, made.slice_nbytes)
    made.gather([[3, 0]], out)
    assert torch.equal(out, expected(engine, shape, tensors, mine))
    whole = bits(kv[0]).flatten()
    runs = layout_of(engine, model).head_slices(layers, heads).runs()
    assert made.slice_nbytes == sum(run.nbytes for run in layout_of(engine, model).head_slices(layers, heads).runs())
    if engine.name != "vllm-cpu":
        assert torch.equal(out[0], torch.cat([whole[run.start : run.stop] for run in runs]))


@each_engine
@each_copy
def test_a_range_of_layers_touches_no_other(engine: Engine, copy: PagedCopy) -> None:
    shape = shape_of(engine, layers=4)
    made, tensors = made_for(engine, shape, copy=copy)
    whole, some = rows(1, made.slice_nbytes), rows(1, made.slice_nbytes)
    made.gather([[4, 1]], whole)
    before = some.clone()
    made.gather([[4, 1]], some, range(1, 3))
    layer = made.slice_nbytes // 4
    assert torch.equal(some[:, layer : 3 * layer], whole[:, layer : 3 * layer])
    assert torch.equal(some[:, :layer], before[:, :layer])
    assert torch.equal(some[:, 3 * layer :], before[:, 3 * layer :])

    made.scatter([[0, 2]], some, range(2, 3))
    again = rows(1, made.slice_nbytes)
    made.gather([[0, 2]], again)
    assert torch.equal(again[:, 2 * layer : 3 * layer], whole[:, 2 * layer : 3 * layer])
    kept = memory(tensors).clone()
    for index in (0, 1, 3):  # written layer by layer they are what was there
        made.scatter([[0, 2]], again, range(index, index + 1))
    assert torch.equal(memory(tensors), kept)


@each_engine
@each_copy
@pytest.mark.parametrize("tokens", [4, 256], ids=["small pages", "large pages"])
def test_a_skipped_block_is_left_alone(engine: Engine, copy: PagedCopy, tokens: int) -> None:
    shape = shape_of(engine, blocks=9, tokens=tokens)
    made, tensors = made_for(engine, shape, copy=copy, blocks=3)
    source = rows(3, made.slice_nbytes)
    before = memory(tensors).clone()
    made.scatter([[SKIP, SKIP, SKIP]], source[:1])
    assert torch.equal(memory(tensors), before)
    kept = rows(1, made.slice_nbytes)
    made.gather([[0, 6, 7]], kept)
    made.scatter([[SKIP, 3, 4], [8, SKIP, 1], [5, 2, SKIP]], source)
    out = rows(3, made.slice_nbytes)
    made.gather([[0, 3, 4], [8, 6, 1], [5, 2, 7]], out)
    parts = (shape.layers, engine.parts, shape.heads, 3, -1)
    wrote, was, had = out.unflatten(1, parts), source.unflatten(1, parts), kept.unflatten(1, parts)
    assert torch.equal(wrote[0][..., 1:, :], was[0][..., 1:, :])
    assert torch.equal(wrote[1][..., ::2, :], was[1][..., ::2, :])
    assert torch.equal(wrote[2][..., :2, :], was[2][..., :2, :])
    for chunk in range(3):
        assert torch.equal(wrote[chunk][..., chunk, :], had[0][..., chunk, :])


@each_copy
@pytest.mark.parametrize("stride", [0, 1001])
def test_rows_may_lie_anywhere(copy: PagedCopy, stride: int) -> None:
    """Rows that begin at odd addresses too: bytes are moved, not elements."""
    for name in ("vllm LBNHC", "sglang", "vllm cpu"):
        engine = ENGINES[name]
        shape = shape_of(engine)
        made, tensors = made_for(engine, shape, copy=copy)
        flat = torch.zeros(3 + 2 * (made.slice_nbytes + stride), dtype=torch.uint8)
        odd = flat[3:].view(2, -1)[:, : made.slice_nbytes]
        plain = rows(2, made.slice_nbytes)
        made.gather([[0, 1], [2, 3]], odd)
        made.gather([[0, 1], [2, 3]], plain)
        assert torch.equal(odd, plain)
        before = memory(tensors).clone()
        made.scatter([[0, 1], [2, 3]], odd)
        assert torch.equal(memory(tensors), before)


def test_a_block_may_be_gathered_into_several_chunks() -> None:
    made, _ = made_for(ENGINES["vllm LBHNC"], Shape())
    out = rows(2, made.slice_nbytes)
    made.gather([[1, 1], [1, 1]], out)
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize(
    "blocks",
    [
        [[0, 1], [2, 3]],
        torch.tensor([[0, 1], [2, 3]]),
        torch.tensor([[0, 1], [2, 3]], dtype=torch.int32),
        ((0, 1), (2, 3)),
    ],
)
def test_block_ids_come_as_lists_or_tensors(blocks: Any) -> None:
    made, _ = made_for(ENGINES["vllm LBHNC"], Shape())
    out, other = rows(2, made.slice_nbytes), rows(2, made.slice_nbytes)
    made.gather(blocks, out)
    made.gather([[0, 1], [2, 3]], other)
    assert torch.equal(out, other)


@each_copy
@pytest.mark.parametrize("tokens", [4, 256], ids=["small pages", "large pages"])
@pytest.mark.parametrize("ids", [[2, 3, 4, 0], [0, 1, 2, 3], [4, 3, 2, 1], [3, 0, 1, 4]])
def test_blocks_that_follow_each_other_are_where_they_belong(copy: PagedCopy, tokens: int, ids: list[int]) -> None:
    engine, shape = ENGINES["vllm LBHNC"], Shape(tokens=tokens)
    made, tensors = made_for(engine, shape, copy=copy, blocks=4)
    kv = noise(1, 2, 2, shape.heads, 4 * tokens, shape.dim, dtype=shape.dtype)
    for layer, (cache,) in zip(kv[0], tensors, strict=True):
        for part, block in zip(layer.chunk(4, dim=2), ids, strict=True):
            cache[block] = torch.cat(list(part), dim=-1)
    out = rows(1, made.slice_nbytes)
    made.gather([ids], out)
    assert torch.equal(out, bits(kv).flatten(1))
    after = memory(tensors).clone()
    for (cache,) in tensors:
        cache[ids] = 0
    made.scatter([ids], out)
    assert torch.equal(memory(tensors), after)


def test_no_chunks_are_no_work() -> None:
    made, tensors = made_for(ENGINES["vllm LBHNC"], Shape())
    before = memory(tensors).clone()
    made.gather([], rows(0, made.slice_nbytes))
    made.scatter([], rows(0, made.slice_nbytes))
    assert torch.equal(memory(tensors), before)


REFUSED = {
    "duplicate": ([[0, 1], [1, 2]], "block 1 is to be written twice"),
    "too large": ([[0, 1], [2, 5]], "block 5 is not among the engine's 5"),
    "negative": ([[0, -2], [2, 3]], "block -2 is not among"),
    "too few a chunk": ([[0], [1]], r"blocks must be \(chunks, 2\)"),
    "ragged": ([[0, 1], [2]], "rows of 2 ids"),
    "fractions": (torch.tensor([[0.0, 1.0], [2.0, 3.0]]), "integers"),
    "other count": ([[0, 1]], r"must be uint8 \(1, "),
}


@each_engine
@pytest.mark.parametrize(("blocks", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_blocks_that_are_not_the_engines_are_refused_before_anything_is_written(
    engine: Engine, blocks: Any, message: str
) -> None:
    shape = shape_of(engine)
    made, tensors = made_for(engine, shape)
    source = rows(2, made.slice_nbytes)
    before, held = memory(tensors).clone(), source.clone()
    with pytest.raises(LayoutError, match=message):
        made.scatter(blocks, source)
    assert torch.equal(memory(tensors), before)
    if blocks != REFUSED["duplicate"][0]:
        with pytest.raises(LayoutError, match=message):
            made.gather(blocks, source)
        assert torch.equal(source, held)


def test_gather_leaves_no_block_out() -> None:
    made, _ = made_for(ENGINES["vllm LBHNC"], Shape())
    with pytest.raises(LayoutError, match="block -1 is not among"):
        made.gather([[0, SKIP]], rows(1, made.slice_nbytes))


def test_rows_that_are_not_a_slice_are_refused() -> None:
    made, _ = made_for(ENGINES["vllm LBHNC"], Shape())
    nbytes = made.slice_nbytes
    for bad, message in (
        (torch.zeros(1, nbytes + 1, dtype=torch.uint8), "must be uint8"),
        (torch.zeros(1, nbytes // 2, dtype=torch.bfloat16), "must be uint8"),
        (torch.zeros(nbytes, dtype=torch.uint8), "must be uint8"),
        (torch.zeros(1, 2 * nbytes, dtype=torch.uint8)[:, ::2], "contiguous"),
        (torch.zeros(1, nbytes, dtype=torch.uint8, device="meta"), "is on meta"),
    ):
        for move in (made.gather, made.scatter):
            with pytest.raises(LayoutError, match=message):
                move([[0, 1]], bad)
    same = torch.zeros(1, nbytes, dtype=torch.uint8).expand(2, nbytes)
    with pytest.raises(LayoutError, match="apart"):
        made.gather([[0, 1], [2, 3]], same)


@pytest.mark.parametrize("layers", [range(2, 3), range(1, 1), range(0, 2, 2), range(-1, 1)])
def test_layers_that_the_rank_has_not_are_refused(layers: range) -> None:
    made, _ = made_for(ENGINES["vllm LBHNC"], Shape())
    with pytest.raises(LayoutError, match="within 0:2"):
        made.gather([[0, 1]], rows(1, made.slice_nbytes), layers)


def pages(**changes: Any) -> list[Pages]:
    engine = ENGINES["vllm LBHNC"]
    shape = replace(Shape(), **changes)
    return engine.pages(shape, engine.allocate(shape))


LAYOUT = Layout(2, 2, 2, 8, 8, "BF16")


@pytest.mark.parametrize(
    ("layout", "held", "heads", "message"),
    [
        (LAYOUT, [], None, "no layer"),
        (replace(LAYOUT, layers=1), pages(), None, "engine has 2 layers, a chunk 1"),
        (replace(LAYOUT, kv_heads=4), pages(), None, "engine has 2 heads, the chunk's slice 4"),
        (replace(LAYOUT, kv_heads=4), pages(), range(3), "engine has 2 heads, the chunk's slice 3"),
        (replace(LAYOUT, kv_heads=4), pages(), range(3, 5), "heads 3:5 are not among the 4"),
        (LAYOUT, pages(), range(0, 2, 2), "heads 0:2 are not"),
        (replace(LAYOUT, head_dim=16), pages(), None, "engine has 8 elements a head, the chunk's slice 16"),
        (replace(LAYOUT, parts=1, kv_heads=1), pages(heads=1), None, "engine has 2 parts, the chunk's slice 1"),
        (replace(LAYOUT, dtype="F16"), pages(), None, "engine has torch.bfloat16, a chunk F16"),
        (replace(LAYOUT, dtype="F8_E4M3"), pages(dtype=torch.float8_e5m2), None, "float8_e5m2, a chunk F8_E4M3"),
        (replace(LAYOUT, dtype="I16"), pages(), None, "bfloat16, a chunk I16"),
        (replace(LAYOUT, tokens=6), pages(), None, "blocks of 4 tokens do not divide a chunk of 6"),
        (LAYOUT, pages()[:1] + pages(tokens=2)[:1], None, "layer 1 has page_tokens 2, layer 0 has 4"),
        (LAYOUT, pages()[:1] * 2, None, "layers 0 and 1 are the same memory"),
    ],
)
def test_a_chunk_that_the_pages_cannot_hold_is_refused(
    layout: Layout, held: list[Pages], heads: range | None, message: str
) -> None:
    with pytest.raises(LayoutMismatch, match=message):
        plan(layout, held, heads)


def test_bytes_hold_fp8_of_either_kind() -> None:
    for dtype in ("F8_E4M3", "F8_E5M2", "U8"):
        assert plan(replace(LAYOUT, dtype=dtype), pages(dtype=torch.uint8)).slice_nbytes == 2 * 2 * 2 * 8 * 8


def test_a_plan_tells_its_sizes() -> None:
    made = plan(replace(LAYOUT, layers=5, kv_heads=4, tokens=16), pages(), range(2, 4))
    assert (made.slice_nbytes, made.blocks_per_chunk, made.blocks) == (2 * 2 * 2 * 16 * 8 * 2, 4, 5)
    assert made.packing == "none"


def test_the_bytes_of_an_element_lie_where_they_were_worked_out_by_hand() -> None:
    """Layer 1, V, head 1, the chunk's token 6, element 3 of kv[2, 2, 2, 8, 8] in BF16: bytes 998 and 999."""
    engine = ENGINES["vllm LBNHC"]
    made, tensors = made_for(engine, Shape())
    tensors[1][0].view(torch.uint16)[4, 1, 2, 8 + 3] = 0x1234  # block 4 has tokens 4 to 7; V follows K
    out = rows(1, made.slice_nbytes)
    made.gather([[0, 4]], out)
    assert out[0, 998:1000].tolist() == [0x34, 0x12]
    out[0, 998:1000] = torch.tensor([0x78, 0x56])
    made.scatter([[SKIP, 2]], out)
    assert tensors[1][0].view(torch.uint16)[2, 1, 2, 8 + 3] == 0x5678


def test_rows_of_codes_and_scales_are_a_latent_of_bytes() -> None:
    """vLLM's fp8_ds_mla: 656 bytes a token, whatever they mean."""
    cache = noise(5, 1, 4, 656, dtype=torch.uint8)
    pages = [pages_of("vllm-mla", cache, kv_heads=1, head_dim=656, block_tokens=4)]
    out = rows(1, 8 * 656)
    plan(Layout(1, 1, 1, 8, 656, "U8"), pages).gather([[3, 1]], out)
    assert torch.equal(out[0], torch.cat([cache[3].flatten(), cache[1].flatten()]))


def test_threads_share_a_plan() -> None:
    shape = Shape(blocks=64, tokens=16, layers=8)
    made, tensors = made_for(ENGINES["vllm LBNHC"], shape)
    before = memory(tensors).clone()
    tables = torch.randperm(64).view(8, 4, 2)

    def there_and_back(table: Any) -> None:
        out = rows(4, made.slice_nbytes)
        for _ in range(5):
            made.gather(table, out)
            made.scatter(table, out)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(there_and_back, tables))
    assert torch.equal(memory(tensors), before)


def test_other_threads_run_while_much_is_copied() -> None:
    """While 128 MiB are copied, the longest time in which another thread got no further is not most of the copy's.

    One quiet moment of several is enough, as other processes pause threads too; with the GIL held there would be none.
    """
    shape = Shape(blocks=4096, tokens=16, heads=8, dim=32)
    made, _ = made_for(ENGINES["flashinfer HND"], shape, blocks=shape.blocks)
    out = torch.zeros((1, made.slice_nbytes), dtype=torch.uint8)
    table = torch.arange(shape.blocks).view(1, -1)
    assert any(_longest_pause_during(lambda: made.gather(table, out)) < 0.4 for _ in range(10))


def _longest_pause_during(work: Callable[[], None]) -> float:
    """As a part of the time that the work takes in a thread."""
    began: list[float] = []
    ended: list[float] = []

    def timed() -> None:
        began.append(time.perf_counter())
        work()
        ended.append(time.perf_counter())

    longest, last = 0.0, time.perf_counter()
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(timed)
        while not ended:
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        done.result()
    return longest / (ended[0] - began[0])
