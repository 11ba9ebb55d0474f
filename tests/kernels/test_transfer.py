from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvgate.chunk.layout import Layout
from kvgate.errors import LayoutError
from kvgate.kernels import routes
from kvgate.kernels.device import Event
from kvgate.kernels.paged_copy import Placed, Selection, gather_twin, scatter_twin
from kvgate.kernels.pages import Table
from kvgate.kernels.registered import Registered
from kvgate.kernels.routes import Routes
from kvgate.kernels.transfer import Step, Transfers, steps
from kvgate.memory.arena import Arena
from kvgate.memory.lease import Lease
from tests.kernels.any_order import AnyOrderDevice
from tests.kernels.devices import examples
from tests.kernels.on_cpu import CpuDevice
from tests.kernels.paged import make_pages, random_table, selected

ENGINE = 99
"""The engine's own stream."""


class Scene:
    """Pages, chunks in an arena, and the transfers between them, on streams that run in any order."""

    def __init__(
        self, seed: int, direct: bool, chunk_count: int, staging_layers: int, piece_nbytes: int, holes: bool = False
    ) -> None:
        self.holes = holes
        self.rng = random.Random(seed)
        random.seed(seed)
        self.layout = Layout(5, 2, 3, 24, 16, "BF16")
        self.selection = Selection(range(1, 5), range(2))
        self.paged = make_pages("BLPHT", {"L": 4, "P": 2, "B": 40, "H": 2, "T": 8}, 32)
        self.device = AnyOrderDevice(seed)
        self.arena = Arena(1 << 20, 64 << 10)
        self.registered = Registered(self.device, piece_nbytes)
        limit = 1 << 30 if direct else 0
        layer_nbytes = self.layout.nbytes // 5
        self.transfers = Transfers(self.device, Routes(limit, limit), 2 * (layer_nbytes * staging_layers + 256))
        self.leases = [self._lease() for _ in range(chunk_count)]
        free = list(range(40))
        self.rng.shuffle(free)
        self.chunks = [self._placed(lease, free) for lease in self.leases]

    def _lease(self) -> Lease:
        """Memory in several extents, as it is in an arena in use."""
        between = self.arena.reserve("tenant", 4096)
        lease = self.arena.reserve("tenant", 4096)
        after = self.arena.reserve("tenant", 4096)
        lease.extend(self.layout.nbytes - 4096)
        between.release()
        after.release()
        assert len(lease.extents) > 1
        for view in lease.views:
            view[:] = self.rng.randbytes(len(view))
        return lease

    def _placed(self, lease: Lease, free: list[int]) -> Placed:
        extents = self.registered.extents(lease, 0, self.layout.nbytes)
        table = random_table(self.rng, self.paged.pages, self.layout.tokens, free, holes=self.holes)
        return Placed(extents, table)

    def tensors(self) -> list[Any]:
        return [np.frombuffer(b"".join(map(bytes, lease.views)), np.uint8).copy() for lease in self.leases]

    def engine_writes(self, content: Any) -> Event:
        """The engine computes: new bytes in its pages, on its own stream, whenever that may run."""

        def write() -> None:
            self.paged.memory[:] = content

        self.device._later(ENGINE, write)
        return self.device.record(ENGINE)

    def close(self) -> None:
        self.transfers.close()
        self.registered.close()
        for lease in self.leases:
            lease.release()
        self.arena.close()
        assert not self.device.allocations
        assert not self.device.registrations


SCENES = {
    "seed": st.integers(0, 2**32 - 1),
    "direct": st.booleans(),
    "chunk_count": st.integers(1, 4),
    "staging_layers": st.integers(1, 9),
    "piece_nbytes": st.sampled_from([4096, 8192, 1 << 30]),
    "layers_at_once": st.integers(0, 3),
}


@settings(max_examples=examples(60), deadline=None)
@given(**SCENES)
def test_chunks_fill_the_pages_once_the_engine_has_left_them(layers_at_once: int, **options: Any) -> None:
    scene = Scene(**options, holes=True)
    content = np.frombuffer(scene.rng.randbytes(len(scene.paged.memory)), np.uint8)
    before = scene.paged.memory.copy()
    scene.paged.memory[:] = content
    for chunk, tensor in zip(scene.chunks, scene.tensors(), strict=True):
        scatter_twin(scene.paged.rows, chunk.table, selected(tensor, scene.layout, scene.selection, scene.paged))
    expected = scene.paged.rows.copy()
    scene.paged.memory[:] = before
    left = scene.engine_writes(content)
    moved = scene.transfers.load(scene.layout, scene.paged.pages, scene.chunks, scene.selection, left, layers_at_once)
    assert [layer for layers, _ in moved for layer in layers] == [1, 2, 3, 4]
    assert all(len(layers) <= (layers_at_once or 4) for layers, _ in moved)
    for layers, event in moved:
        event.wait()
        # Whatever else has run by now: these layers are there.
        np.testing.assert_array_equal(scene.paged.rows[: layers.stop - 1], expected[: layers.stop - 1])
    np.testing.assert_array_equal(scene.paged.rows, expected)
    scene.close()


@settings(max_examples=examples(60), deadline=None)
@given(**SCENES)
def test_what_the_engine_has_computed_fills_the_chunks(layers_at_once: int, **options: Any) -> None:
    scene = Scene(**options)
    content = np.frombuffer(scene.rng.randbytes(len(scene.paged.memory)), np.uint8)
    before = scene.paged.memory.copy()
    scene.paged.memory[:] = content
    expected = scene.tensors()
    for chunk, tensor in zip(scene.chunks, expected, strict=True):
        gather_twin(scene.paged.rows, chunk.table, selected(tensor, scene.layout, scene.selection, scene.paged))
    scene.paged.memory[:] = before
    computed = scene.engine_writes(content)
    moved = scene.transfers.store(
        scene.layout, scene.paged.pages, scene.chunks, scene.selection, computed, layers_at_once
    )
    layer_nbytes = scene.layout.nbytes // 5
    for layers, event in moved:
        event.wait()
        for tensor, wanted in zip(scene.tensors(), expected, strict=True):
            stop = layers.stop * layer_nbytes
            np.testing.assert_array_equal(tensor[:stop], wanted[:stop])
    scene.close()


@settings(max_examples=examples(30), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), staging_layers=st.integers(1, 3))
def test_transfers_that_follow_each_other_do_not_mix(seed: int, staging_layers: int) -> None:
    """Stored, loaded elsewhere, and stored again, with no wait by any thread in between."""
    scene = Scene(seed, direct=False, chunk_count=2, staging_layers=staging_layers, piece_nbytes=4096)
    first = scene.transfers.store(scene.layout, scene.paged.pages, scene.chunks, scene.selection)
    scene.transfers.load(scene.layout, scene.paged.pages, scene.chunks[::-1], scene.selection, first[-1].event)
    again = scene.transfers.store(scene.layout, scene.paged.pages, scene.chunks, scene.selection)
    expected = scene.tensors()
    for chunk, tensor in zip(scene.chunks, expected, strict=True):
        gather_twin(scene.paged.rows, chunk.table, selected(tensor, scene.layout, scene.selection, scene.paged))
    again[-1].event.wait()
    for tensor, wanted in zip(scene.tensors(), expected, strict=True):
        np.testing.assert_array_equal(tensor, wanted)
    scene.close()


def test_a_chunk_that_is_stored_leaves_nothing_out() -> None:
    scene = Scene(1, direct=True, chunk_count=1, staging_layers=1, piece_nbytes=4096)
    extents, table = scene.chunks[0].extents, scene.chunks[0].table
    holed = Placed(extents, Table([-1, *table.blocks[1:]], table.offset))
    with pytest.raises(LayoutError, match="all of its blocks"):
        scene.transfers.store(scene.layout, scene.paged.pages, [holed], scene.selection)
    scene.close()


def test_a_missing_wait_would_show() -> None:
    """The device of these tests finds an order that breaks a load which does not wait for the engine."""
    broken = False
    for seed in range(300):
        scene = Scene(seed, direct=False, chunk_count=1, staging_layers=1, piece_nbytes=1 << 30)
        scene.paged.memory[:] = 0
        for chunk, tensor in zip(scene.chunks, scene.tensors(), strict=True):
            scatter_twin(scene.paged.rows, chunk.table, selected(tensor, scene.layout, scene.selection, scene.paged))
        expected = scene.paged.memory.copy()
        before = scene.engine_writes(np.zeros_like(expected))
        moved = scene.transfers.load(scene.layout, scene.paged.pages, scene.chunks, scene.selection)
        moved[-1].event.wait()
        before.wait()
        broken = not np.array_equal(scene.paged.memory, expected)
        scene.close()
        if broken:
            break
    assert broken


@given(
    st.integers(1, 50), st.integers(1, 9), st.integers(0, 9), st.integers(1, 400), st.integers(0, 4), st.integers(0, 3)
)
def test_steps_fit_and_cover_everything_once_in_the_order_of_the_layers(
    layer_nbytes: int, layers: int, chunks: int, room: int, at_once: int, first: int
) -> None:
    whole = range(first, first + layers)
    if layer_nbytes > room:
        with pytest.raises(LayoutError, match=f"half of a staging buffer has {room} bytes"):
            list(steps(layer_nbytes, whole, chunks, room, at_once))
        return
    found = list(steps(layer_nbytes, whole, chunks, room, at_once))
    assert all(len(step.layers) * len(step.chunks) * layer_nbytes <= room for step in found)
    assert all(len(step.layers) <= (at_once or layers) for step in found)
    covered = [(layer, chunk) for step in found for layer in step.layers for chunk in step.chunks]
    assert sorted(covered) == [(layer, chunk) for layer in whole for chunk in range(chunks)]
    assert [step.layers.start for step in found] == sorted(step.layers.start for step in found)


def test_one_layer_of_a_few_chunks_is_a_step_where_not_all_have_room() -> None:
    assert list(steps(10, range(2), 3, 25)) == [
        Step(range(1), range(2)),
        Step(range(1), range(2, 3)),
        Step(range(1, 2), range(2)),
        Step(range(1, 2), range(2, 3)),
    ]


class TestRoutes:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KVGATE_KERNEL_CACHE", str(tmp_path / "kernels"))

    def test_what_was_measured_here_holds(self) -> None:
        assert routes.routes("90") == Routes()
        assert not routes.routes("90").measured_on
        found = Routes(load=1 << 20, store=2 << 20, measured_on="a GPU, today")
        routes.keep("90", found)
        assert routes.routes("90") == found
        assert routes.routes("80") == Routes()

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"load": "x", "store": 1, "measured_on": ""}'])
    def test_a_table_that_cannot_be_read_is_told_and_done_without(
        self, content: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        routes.keep("90", Routes())
        routes.path("90").write_text(content)
        assert routes.routes("90") == Routes()
        assert "cannot be used" in caplog.text


def test_a_transfer_with_no_chunks_is_none() -> None:
    device = CpuDevice()
    transfers = Transfers(device, Routes(0, 0), 1 << 20)
    paged = make_pages("LPBHT", {"L": 1, "P": 2, "B": 4, "H": 1, "T": 8}, 32)
    layout = Layout(1, 2, 1, 8, 16, "BF16")
    for moved in (
        transfers.load(layout, paged.pages, [], Selection.all_of(layout)),
        transfers.store(layout, paged.pages, [], Selection.all_of(layout)),
    ):
        for _, event in moved:
            event.wait()
    transfers.close()
    assert not device.allocations
    assert not device.launches
