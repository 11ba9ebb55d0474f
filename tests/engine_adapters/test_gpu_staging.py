"""The GPU's way between pages and chunks, on the CPU, against torch's and against the codecs'."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine_adapters.gpu_staging import GpuPlan
from engine_adapters.staging import plan
from kvgate.chunk.form import stored_form
from kvgate.chunk.layout import Layout
from kvgate.codec.lossy import lossy_codec
from kvgate.errors import LayoutError, LayoutMismatch
from kvgate.kernels import quantise
from kvgate.kernels.pieces import Extent
from kvgate.kernels.quantised_copy import Outcome
from tests.engine_adapters.paged import ENGINES, Engine, Shape, Tensors
from tests.engine_adapters.test_staging import DTYPES, layout_of, memory, random_ids, rows, shape_of
from tests.kernels.on_cpu import CpuDevice

pytestmark = pytest.mark.engine

each_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())


def scramble(tensors: Tensors) -> None:
    """New bytes in every page, padding too."""
    for layer in tensors:
        for tensor in layer:
            whole = torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())
            whole.copy_(torch.randint(0, 256, whole.shape, dtype=torch.uint8))


def addresses(tensor: Any) -> list[int]:
    return [row.data_ptr() for row in tensor]


def halves(row: Any) -> tuple[list[Extent], list[Any]]:
    """The bytes of a row in two places, and what keeps them there."""
    kept = [row[: len(row) // 2].clone(), row[len(row) // 2 :].clone()]
    return [Extent(each.data_ptr(), len(each)) for each in kept], kept


@each_engine
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gpus_way_moves_the_bytes_that_torch_moves(engine: Engine, dtype: str) -> None:
    shape = shape_of(engine, dtype=DTYPES[dtype], layers=3, blocks=9)
    tensors = engine.allocate(shape)
    scramble(tensors)
    layout, pages = layout_of(engine, shape, dtype=dtype), engine.pages(shape, tensors)
    device = CpuDevice()
    ours, torchs = GpuPlan(device, layout, pages), plan(layout, pages)
    ids = random_ids(shape, 3, 2)
    out, expected = rows(3, torchs.slice_nbytes), rows(3, torchs.slice_nbytes)
    ours.gather(ids, addresses(out), 0).wait()
    torchs.gather(ids, expected)
    assert torch.equal(out, expected)

    ids[1][0] = -1
    before, source = memory(tensors).clone(), rows(3, torchs.slice_nbytes)
    torchs.scatter(ids, source, range(1, 3))
    after = memory(tensors).clone()
    assert not torch.equal(before, after)
    restore(tensors, before)
    ours.scatter(ids, addresses(source), 0, range(1, 3)).wait()
    assert torch.equal(memory(tensors), after)
    restore(tensors, before)
    apart = [halves(row) for row in source]
    ours.scatter(ids, [extents for extents, _ in apart], 0, range(1, 3)).wait()
    assert torch.equal(memory(tensors), after)
    ours.close()
    assert not device.allocations


def restore(tensors: Tensors, content: Any) -> None:
    start = 0
    storages = {tensor.untyped_storage().data_ptr(): tensor for layer in tensors for tensor in layer}
    for each in storages.values():
        whole = torch.tensor([], dtype=torch.uint8).set_(each.untyped_storage())
        whole.copy_(content[start : start + whole.numel()])
        start += whole.numel()


CODECS = ["k16v8", "k16v8-fp8", "int8", "fp8", "int4"]


@pytest.mark.parametrize("codec", CODECS)
@each_engine
def test_a_codec_on_the_way_gives_the_chunks_that_it_gives_afterwards(engine: Engine, codec: str) -> None:
    shape = shape_of(engine, layers=2, blocks=9, dim=8 if "row_elements" in engine.options else 80)
    if engine.name == "vllm-cpu":
        pytest.skip("packed pages hold no numbers")
    layout = layout_of(engine, shape)
    if engine.parts == 1 and codec.startswith("k16"):
        pytest.skip(f"{codec} does not keep a latent")
    stored = stored_form(codec, layout)
    tensors = engine.allocate(shape)
    for layer in tensors:
        for tensor in layer:
            tensor.copy_(torch.randn(tensor.shape).to(tensor.dtype))
    pages = engine.pages(shape, tensors)
    device = CpuDevice()
    ours, torchs = GpuPlan(device, layout, pages, threads=32), plan(layout, pages)
    ids = random_ids(shape, 2, 2)
    data = rows(2, stored.nbytes)
    assert all(good(each) for each in ours.encode(codec, ids, addresses(data), 0))
    raw = rows(2, torchs.slice_nbytes)
    torchs.gather(ids, raw)
    expected = torch.zeros_like(data)
    for chunk, row in zip(raw, expected, strict=True):
        kv = chunk.contiguous().numpy().view(np.uint16).reshape(layout.shape)
        for layer in range(layout.layers):
            lossy_codec(codec).encode(kv[layer], "BF16", arrays(stored, row, layer), quantise)
    assert torch.equal(data, expected)

    decoded = torch.zeros_like(raw)
    for row, chunk in zip(data, decoded, strict=True):
        kv = np.empty(layout.shape, np.uint16)
        for layer in range(layout.layers):
            lossy_codec(codec).decode(arrays(stored, row, layer), "BF16", kv[layer], quantise)
        chunk.copy_(torch.from_numpy(kv.view(np.uint8).reshape(-1)))
    scramble(tensors)
    before = memory(tensors).clone()
    torchs.scatter(ids, decoded)
    after = memory(tensors).clone()
    restore(tensors, before)
    assert all(good(each) for each in ours.decode(codec, ids, addresses(data), 0))
    assert torch.equal(memory(tensors), after)
    ours.close()
    assert not device.allocations


def good(begun: Any) -> bool:
    if isinstance(begun, Outcome):
        return begun.good()
    begun.wait()
    return True


def arrays(stored: Any, row: Any, layer: int) -> dict[str, Any]:
    """One layer of each tensor, as the codec has them."""
    kinds = {"BF16": np.uint16, "I8": np.int8, "U8": np.uint8, "F8_E4M3": np.uint8}
    whole = row.numpy()
    return {
        name: whole[info.start : info.stop].view(kinds[info.dtype]).reshape(info.shape)[layer]
        for name, info in stored.tensors.items()
    }


class TestRefusals:
    @pytest.fixture(autouse=True)
    def made(self) -> Any:
        self.engine = next(each for each in ENGINES.values() if each.name == "vllm")
        self.shape = Shape(blocks=9)
        self.layout = layout_of(self.engine, self.shape)
        self.tensors = self.engine.allocate(self.shape)
        self.pages = self.engine.pages(self.shape, self.tensors)
        self.plan = GpuPlan(CpuDevice(), self.layout, self.pages)

    def test_chunks_that_the_pages_cannot_hold(self) -> None:
        other = replace(self.layout, head_dim=9)
        with pytest.raises(LayoutMismatch):
            GpuPlan(CpuDevice(), other, self.pages)

    def test_blocks_that_are_not_those_of_a_chunk(self) -> None:
        for blocks, words in (([[0]], "2 blocks"), ([[0, 9]], "block 9"), ([[0, -1]], "all of its blocks")):
            with pytest.raises(LayoutError, match=words):
                self.plan.gather(blocks, [4096], 0)
        with pytest.raises(LayoutError, match="twice"):
            self.plan.scatter([[1, 1]], [4096], 0)

    def test_layers_that_the_plan_has_not(self) -> None:
        with pytest.raises(LayoutError, match="layers 1:3 are not a range within 0:2"):
            self.plan.gather([[0, 1]], [4096], 0, range(1, 3))

    def test_layers_of_different_strides(self) -> None:
        engine = next(each for each in ENGINES.values() if each.name == "sglang")
        tensors = engine.allocate(self.shape)
        wide = engine.allocate(replace(self.shape, dim=16))
        mixed = [tensors[0], tuple(each[..., :8] for each in wide[1])]
        layout = Layout(2, 2, self.shape.heads, 2 * self.shape.tokens, 8, "BF16")
        with pytest.raises(LayoutError, match="not moved in one launch"):
            GpuPlan(CpuDevice(), layout, engine.pages(self.shape, mixed))
