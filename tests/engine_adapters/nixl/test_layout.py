from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from engine_adapters.nixl import wire
from engine_adapters.nixl.errors import MalformedMessage, PeerRefused
from engine_adapters.nixl.layout import HOST, BlockRun, HostBlocks, Layout, Region, from_wire, require_fit
from tests.engine_adapters.nixl.layouts import GROUP, LAYERS, LAYOUT, WINDOW, with_group


def test_descriptors_count_the_blocks_of_all_regions_before() -> None:
    assert LAYOUT.descriptors([[3, 1], [7]]).tolist() == [3, 1, 19, 17, 35, 33, 48 + 7, 56 + 7]


def test_rows_are_strided_descriptors_of_each_region() -> None:
    assert LAYOUT.rows()[3].tolist() == [0x80000, 512, 0, 1024, 8]


def test_overlapping_and_adjoining_regions_are_registered_as_one_span() -> None:
    assert LAYOUT.spans() == [(0x10000, 0x30000, 0), (0x80000, 8 * 1024, 0)]


def test_blocks_are_seen_in_the_order_of_their_regions() -> None:
    memory = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)  # [blocks, parts, bytes]
    base = memory.ctypes.data
    group = replace(GROUP, regions=tuple(Region(f"p{n}", base + n * 8, 8, 48, 4) for n in (4, 1)))
    views = list(HostBlocks(Layout(0, 1, (group,))).views(0, 2))
    assert [bytes(view) for view in views] == [memory[2, 4].tobytes(), memory[2, 1].tobytes()]
    ctypes.memset(base + 2 * 48 + 8, 0xFF, 8)
    assert bytes(views[1]) == b"\xff" * 8


@pytest.mark.parametrize(("first", "count", "ids"), [(2, 3, (7, 8, 9)), (3, 1, (8,)), (1, 2, None), (4, 2, None)])
def test_part_of_a_run_is_whole_or_none(first: int, count: int, ids: tuple[int, ...] | None) -> None:
    assert BlockRun(2, (7, 8, 9)).part(first, count) == ids


def test_layout_survives_the_wire() -> None:
    assert from_wire(wire.unpack(wire.pack(LAYOUT.as_wire()))) == LAYOUT


@pytest.mark.parametrize(
    "value", [None, 7, [], [0, 1, []], [0, 1, [[]]], [0, True, LAYOUT.as_wire()[2]], ["0", 1, [1]]]
)
def test_wire_that_is_no_layout_is_refused(value: object) -> None:
    with pytest.raises(MalformedMessage):
        from_wire(value)


def test_layout_that_cannot_be_is_refused_wherever_it_comes_from() -> None:
    at = LAYERS[0]
    for wrong in (
        replace(at, base=0),
        replace(at, base=1 << 63),
        replace(at, block_nbytes=8192),  # more than its stride
        replace(at, blocks=0),
        replace(at, name=""),
        replace(at, blocks=15),  # the group's other regions have 16
        replace(at, device=0),  # the others are in host memory
    ):
        with pytest.raises(ValueError):
            with_group(regions=(wrong, *LAYERS[1:]))
    with pytest.raises(ValueError, match="hex"):
        with_group(space="not a space")
        LAYOUT.groups[0].space.encode()
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Layout(2, 2, (GROUP,))


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (replace(LAYOUT, ranks=2), "tensor-parallel ranks differs: 1 here, 2 there"),
        (replace(LAYOUT, groups=(GROUP,)), "cache groups differs: 2 here, 1 there"),
        (with_group(space="ee" * 32), f"space of group 0 differs: '{'ab' * 32}' here, '{'ee' * 32}' there"),
        (with_group(dtype="float8_e4m3"), "dtype of group 0 differs: 'bfloat16' here, 'float8_e4m3' there"),
        (with_group(packing="HND"), "packing of group 0 differs: 'NHD' here, 'HND' there"),
        (with_group(block_tokens=32), "tokens of a block of group 0 differs: 16 here, 32 there"),
        (with_group(heads=(4, 8)), "heads of group 0 differs: (0, 4) here, (4, 8) there"),
        (with_group(regions=LAYERS[:2]), "regions of group 0 differs: 3 here, 2 there"),
        (with_group(regions=LAYERS[::-1]), "order of layers of group 0 differs: 'layer.0' here, 'layer.2' there"),
        (
            with_group(regions=tuple(replace(layer, block_nbytes=2048) for layer in LAYERS)),
            "bytes of a block of layer.0 differs: 4096 here, 2048 there",
        ),
    ],
)
def test_memory_that_does_not_fit_is_refused_by_field_and_both_values(theirs: Layout, words: str) -> None:
    with pytest.raises(PeerRefused) as raised:
        require_fit(LAYOUT, theirs)
    assert words in str(raised.value)


def test_memory_fits_wherever_it_lies_and_however_much_there_is() -> None:
    elsewhere = tuple(replace(layer, base=layer.base + 4096, stride=8192, blocks=3) for layer in LAYERS)
    require_fit(LAYOUT, replace(LAYOUT, groups=(replace(GROUP, regions=elsewhere), WINDOW)))


@pytest.mark.parametrize("blocks", [[[0]], [[16], []], [[-1], []], [[2, 2], []]])
def test_blocks_that_there_are_not_are_refused(blocks: list[list[int]]) -> None:
    with pytest.raises(ValueError):
        LAYOUT.check_blocks(blocks)


def test_gpu_regions_are_told_from_host_memory() -> None:
    assert LAYOUT.on_host
    assert LAYERS[0].device == HOST
    assert not Layout(0, 1, (replace(GROUP, regions=(replace(LAYERS[0], device=1),)),)).on_host
