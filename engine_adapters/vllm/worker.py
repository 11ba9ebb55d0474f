"""A worker's half of the connector: moves KV between this rank's pages and the gateway, in threads of its own.

Invariants
1. No exception leaves a thread of ours: what fails is a chunk that is not loaded, and recomputed, or not stored.
2. A load is reported ended when nobody writes into its blocks any more, and not before; a block that was not filled by
   then is reported with it.
3. A save is reported taken when nobody reads its blocks any more.
4. Work for other spaces than this worker's own is refused as a whole.
5. The threads never wait for the engine, nor does it for them, but for layers of a layer-wise load.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from engine_adapters.breaker import Breaker
from engine_adapters.chunk_writer import ChunkWriter
from engine_adapters.layouts import Pages, of_vllm
from engine_adapters.paged_copy import SKIP
from engine_adapters.staging import Plan, plan
from engine_adapters.vllm.chunk_reader import Came, ChunkReader, Held
from engine_adapters.vllm.device import Device
from engine_adapters.vllm.direct_memory import direct_layout
from engine_adapters.vllm.direct_worker import Address, DirectWorker, Ended
from engine_adapters.vllm.job import Load, LoadPart, Report, Save, SavedChunk, Work
from engine_adapters.vllm.layerwise import LayerGate
from engine_adapters.vllm.metrics import Tally
from engine_adapters.vllm.rows import Rows
from engine_adapters.vllm.settings import Settings
from engine_adapters.vllm.space import Group, with_lora
from kvgate.chunk.form import RAW
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.client.sync import Client
from kvgate.client.values import Slice
from kvgate.codec.chunk_body import encode_body
from kvgate.errors import GatewayError, GatewayUnavailable, LayoutMismatch

_log = logging.getLogger(__name__)

_Read = Callable[[Sequence[bytes], Sequence[int]], Came]
"""Reads the chunks of these hashes into these rows."""

_CLOSE_S = 10.0
_ROW_WAIT_S = 1.0
"""How long a save waits for room to copy its blocks to; meanwhile it keeps them from vLLM."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Where this worker is among those of its engine.

    heads:    which of the model's KV heads it holds
    is_whole: whether it holds all layers and heads
    writes:   whether it is the one to store what several ranks hold alike
    writer:   the engine's name, by which its ranks store chunks together
    rank:     its number among the `ranks` tensor-parallel ones
    """

    heads: range
    is_whole: bool
    writes: bool
    writer: str
    rank: int = 0
    ranks: int = 1


@dataclass(slots=True)
class _Early:
    """A chunk whose layers are taken one by one. layers: those that have been."""

    row: int
    layers: set[int] = field(default_factory=set)


class Worker:
    """Loads and saves for one rank. vLLM's thread calls; what is reported is collected by it too."""

    def __init__(
        self, client: Client, settings: Settings, groups: Sequence[Group], rank: Rank, *, one_table: bool
    ) -> None:
        """one_table: whether all layers share one block table, so that a block's number says which it is"""
        self.tally = Tally()
        self._client = client
        self._settings = settings
        self._groups = tuple(groups)
        self._rank = rank
        self._one_table = one_table
        self._breaker = Breaker()
        self._writer = ChunkWriter(client, settings.bucket, float(settings.save_deadline))
        self._plans: list[Plan] = []
        self._direct: DirectWorker | None = None
        self._loading: ThreadPoolExecutor | None = None
        self._taking: ThreadPoolExecutor | None = None
        self._storing: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._report = Report()
        self._received: set[str] = set()
        self._failed: set[str] = set()
        self._invalid: set[int] = set()
        self._gates: list[tuple[Load, LayerGate]] = []
        self._early: dict[tuple[int, bytes], _Early] = {}
        self._knows_ways = False

    def register(self, caches: dict[str, Any]) -> None:
        """Take the engine's pages. Raises LayoutError and LayoutMismatch where they are not what the spaces say."""
        all_pages = [[self._pages(group, caches[name]) for name in group.layer_names] for group in self._groups]
        for group, pages in zip(self._groups, all_pages, strict=True):
            layout = group.space.layout
            self._plans.append(plan(layout, pages, self._rank.heads if layout.parts == 2 else None))
        self._device = Device(self._plans[0].device)
        self._layer_of = {
            name: (index, layer)
            for index, group in enumerate(self._groups)
            for layer, name in enumerate(group.layer_names)
        }
        settings = self._settings
        slice_nbytes = max(each.slice_nbytes for each in self._plans)
        half = settings.staging // 2
        self._load_rows = Rows(slice_nbytes, half, settings.load_threads)
        self._save_rows = Rows(slice_nbytes, half, settings.save_threads + 1)
        self._reader = ChunkReader(self._client, settings.bucket, self._load_rows)
        self._window = max(1, half // self._load_rows.nbytes // settings.load_threads)
        self._loading = ThreadPoolExecutor(settings.load_threads, "kvgate-load")
        self._taking = ThreadPoolExecutor(1, "kvgate-take")
        self._storing = ThreadPoolExecutor(settings.save_threads, "kvgate-store")
        if settings.direct is not None:
            memory = direct_layout(self._groups, all_pages, self._rank.heads, self._rank.rank, self._rank.ranks)
            self._direct = DirectWorker(memory, settings.find_credentials(), settings.direct)

    @staticmethod
    def _pages(group: Group, cache: Any) -> Pages:
        if isinstance(cache, list | tuple):
            raise LayoutMismatch("a layer with several tensors is not known")
        return of_vllm(cache, group.spec, group.space.packing)

    # --- what vLLM calls in a step ---

    @property
    def address(self) -> Address | None:
        """Where other instances call this worker; None where prompts are not handed over directly."""
        return self._direct.address if self._direct is not None else None

    def begin_loads(self, work: Work) -> None:
        """Start this step's loads, offers and fetches."""
        if self._direct is not None and (work.offers or work.fetches or work.given_up):
            if self._is_ours(work):
                self._direct.begin(work, self._device.now())
            else:
                self._direct.refuse(work)
        if work.loads and self._loading is not None:
            if not self._is_ours(work):
                for load in work.loads:
                    self._end_load(load, {part.group: 0 for part in load.parts}, "other space")
                return
            submitted = self._device.now()
            for load in work.loads:
                gate = LayerGate([len(group.layer_names) for group in self._groups]) if load.layerwise else None
                if gate is not None:
                    self._gates.append((load, gate))
                self._loading.submit(self._load, load, submitted, gate, time.monotonic())

    def wait_for_layer(self, name: str) -> None:
        """Wait until the layer-wise loads of this step have brought a layer."""
        for load, gate in self._gates:
            nothing = {part.group: 0 for part in load.parts}
            stalled = partial(self._end_load, load, nothing, "stalled")
            gate.wait(*self._layer_of[name], load.deadline_s + _CLOSE_S, stalled)

    def layer_computed(self, name: str, work: Work) -> None:
        """With `save_layerwise`, take a layer out of the blocks of this step's saves, as far as there are rows."""
        if not (self._settings.save_layerwise and work.saves and self._rank.writes and self._is_ours(work)):
            return
        group, layer = self._layer_of[name]
        submitted = self._device.now()
        assert self._taking is not None
        for save in work.saves:
            for chunk in save.chunks:
                if chunk.group == group:
                    early = self._early.get((save.job, chunk.hash))
                    if early is None:
                        row = self._save_rows.take(0)
                        if row is None:
                            continue
                        early = self._early[save.job, chunk.hash] = _Early(row)
                    self._taking.submit(self._take_layer, chunk, layer, early, submitted)

    def end_step(self, work: Work) -> None:
        """Start this step's saves: what they are to take has been computed."""
        self._gates.clear()
        if work.saves and self._taking is not None:
            ours, submitted = self._is_ours(work), self._device.now()
            for save in work.saves:
                if ours and self._rank.writes:
                    self._taking.submit(self._take, save, submitted)
                else:
                    self._end_save(save, lost=() if ours else [chunk.hash for chunk in save.chunks])

    def received(self) -> tuple[set[str], set[str]]:
        """Requests whose asynchronous loads have ended since the last call, and those of them that failed."""
        if self._direct is not None:
            self._collect(self._direct.ended())
        with self._lock:
            received, self._received = self._received, set()
            failed, self._failed = self._failed, set()
        return received, failed

    def _collect(self, ended: Ended) -> None:
        for _ in ended.failed:
            self.tally.failed("not handed over directly")
        with self._lock:
            self._report.offered.update(ended.offers)
            self._report.loaded.update(ended.arrived + ended.failed)
            self._received.update(ended.arrived, ended.failed)
            self._failed.update(ended.failed)

    def invalid_blocks(self) -> set[int]:
        """Blocks that loads which have ended since the last call did not fill."""
        with self._lock:
            invalid, self._invalid = self._invalid, set()
        return invalid

    def report(self) -> Report | None:
        """What the scheduler's half is to know; None when there is nothing new."""
        with self._lock:
            report, self._report = self._report, Report()
        return report or None

    def close(self) -> None:
        """Store what is to be stored, within seconds, and let go of the gateway."""
        if self._direct is not None:
            self._direct.close()
        deadline = time.monotonic() + _CLOSE_S
        for pool in (self._taking, self._loading, self._storing):
            if pool is not None:
                pool.shutdown(wait=False)
                for thread in pool._threads:  # there is no other way to wait for them, but not for ever
                    thread.join(max(deadline - time.monotonic(), 0))
        if self._plans:
            self._save_rows.close()
            self._load_rows.close()
        self._client.close()

    def _is_ours(self, work: Work) -> bool:
        ours = tuple(group.space.id for group in self._groups)
        if work.spaces != ours:
            _log.error("this worker's spaces are not the scheduler's, so it loads and stores nothing")
        return work.spaces == ours

    # --- loading ---

    def _load(self, load: Load, submitted: Any, gate: LayerGate | None, began: float) -> None:
        arrived = {part.group: 0 for part in load.parts}
        why = ""
        try:
            self._learn_ways()
            deadline = began + load.deadline_s
            for part in load.parts:
                space = with_lora(self._groups[part.group].space, load.lora)
                arrived[part.group] = self._load_part(part, space, submitted, deadline, gate)
                if arrived[part.group] < len(part.hashes):
                    why = "late" if time.monotonic() >= deadline else "did not arrive"
                    break
        except Exception:  # a defect of ours must not end the engine
            _log.exception("a request's KV is not loaded")
            arrived, why = dict.fromkeys(arrived, 0), "defect"
        self.tally.load_ended(time.monotonic() - began)
        if gate is None:
            self._end_load(load, arrived, why)
        else:
            gate.end(lambda: self._end_load(load, arrived, why))

    def _learn_ways(self) -> None:
        """Have the gateway tell, once, how it is reached on its own host."""
        if not self._knows_ways:
            with contextlib.suppress(GatewayError):
                self._client.tenant(deadline_s=float(self._settings.lookup_deadline))
                self._knows_ways = True

    def _load_part(self, part: LoadPart, space: Space, submitted: Any, deadline: float, gate: LayerGate | None) -> int:
        """Bring chunks of a group into their blocks; how many leading ones came with all their layers.

        From the first chunk that has no slices on they are read whole, before the first layer is there.
        """
        each = self._plans[part.group]
        heads = self._rank.heads if space.layout.parts == 2 else None
        held = Held(space, self._groups[part.group].layers, heads, each.slice_nbytes)
        bring = partial(self._bring, submitted=submitted, deadline=deadline, gate=gate)
        whole = partial(self._reader.whole, held, deadline=deadline)
        every = range(each.layers)
        if held.is_whole and gate is None:
            return bring(part, every, whole).count
        sliced, came_whole = part, 0
        step = self._settings.layers_at_once if gate is not None else each.layers
        for first in range(0, each.layers, step):
            layers = every[first : first + step]
            came = bring(sliced, layers, partial(self._reader.slices, held, layers, deadline=deadline))
            if came.no_slices and first == 0:
                came_whole = bring(part.chunks(came.count, len(part.hashes)), every, whole).count
                sliced = part.chunks(0, came.count)
            if came.count < len(sliced.hashes):
                return came.count if layers.stop == each.layers else 0  # what came has none of the layers that follow
            if gate is not None and len(sliced.hashes) + came_whole == len(part.hashes):
                gate.open(part.group, layers.stop)
        return len(sliced.hashes) + came_whole

    def _bring(
        self, part: LoadPart, layers: range, read: _Read, submitted: Any, deadline: float, gate: LayerGate | None
    ) -> Came:
        """Bring some layers of chunks into their blocks, as many chunks at a time as there are rows for."""
        each = self._plans[part.group]
        done = 0
        while done < len(part.hashes):
            hashes = part.hashes[done : done + self._window]
            blocks = part.blocks[done : done + self._window]
            taken: list[int] = []
            try:
                for _ in hashes:
                    row = self._load_rows.take(deadline - time.monotonic())
                    if row is None:
                        return Came(done)
                    taken.append(row)
                if time.monotonic() >= deadline:
                    return Came(done)
                came = read(hashes, taken)
                with gate.writing() if gate is not None else contextlib.nullcontext(True) as may_write:
                    if not may_write:
                        return Came(done)
                    with self._device.after(submitted):
                        for row, ids in zip(taken[: came.count], blocks, strict=False):
                            kv = self._load_rows.kv(row, each.slice_nbytes)[None]
                            self._device.scatter(lambda source, ids=ids: each.scatter([ids], source, layers), kv)  # type: ignore[misc]
                self.tally.loaded(came.count if layers.stop == each.layers else 0, came.nbytes)
            finally:
                for row in taken:
                    self._load_rows.give(row)
            done += came.count
            if came.count < len(hashes):
                return Came(done, no_slices=came.no_slices)
        return Came(done)

    def _end_load(self, load: Load, arrived: dict[int, int], why: str) -> None:
        missing = {
            block
            for part in load.parts
            for blocks in part.blocks[arrived[part.group] :]
            for block in blocks
            if block != SKIP
        }
        if missing:
            self.tally.failed(why or "did not arrive")
        with self._lock:
            if missing and not self._one_table:
                self._failed.add(load.request_id)
            else:
                self._invalid |= missing
            if not load.layerwise:
                self._received.add(load.request_id)
            self._report.loaded[load.request_id] += 1
            if missing:
                for part in load.parts:
                    self._report.lost.update(part.hashes[arrived[part.group] :])

    # --- saving ---

    def _take(self, save: Save, submitted: Any) -> None:
        """Copy a save's chunks out of their blocks, and have each stored."""
        left = list(save.chunks)
        try:
            while left and self._breaker.allows() and self._take_chunk(save, left[0], submitted):
                left.pop(0)
        except Exception:
            _log.exception("new chunks are not stored")
        for chunk in left:
            early = self._early.pop((save.job, chunk.hash), None)
            if early is not None:
                self._save_rows.give(early.row)
        if left:
            self.tally.not_stored("staging full" if self._breaker.allows() else "gateway unavailable", len(left))
        self._end_save(save, lost=[chunk.hash for chunk in left])

    def _take_chunk(self, save: Save, chunk: SavedChunk, submitted: Any) -> bool:
        """Copy a chunk out of its blocks and have it stored; False when there is nowhere to copy it to."""
        assert self._storing is not None
        early = self._early.pop((save.job, chunk.hash), None)
        if early is None:
            row = self._save_rows.take(_ROW_WAIT_S)
            if row is None:
                return False
            early = _Early(row)
        try:
            layers = range(self._plans[chunk.group].layers)
            if not early.layers:
                self._gather(chunk, early.row, layers, submitted)
            else:
                for layer in set(layers) - early.layers:
                    self._gather(chunk, early.row, range(layer, layer + 1), submitted)
            self._storing.submit(self._store, chunk, save.lora, early.row)
        except BaseException:
            self._save_rows.give(early.row)
            raise
        return True

    def _take_layer(self, chunk: SavedChunk, layer: int, early: _Early, submitted: Any) -> None:
        try:
            self._gather(chunk, early.row, range(layer, layer + 1), submitted)
            early.layers.add(layer)
        except Exception:  # it is tried again with the whole chunk
            _log.exception("layer %d is not taken out", layer)

    def _gather(self, chunk: SavedChunk, row: int, layers: range, submitted: Any) -> None:
        each = self._plans[chunk.group]
        kv = self._save_rows.kv(row, each.slice_nbytes)[None]
        with self._device.after(submitted):
            if len(layers) == each.layers:
                self._device.gather(lambda out: each.gather([chunk.blocks], out), kv)
                return
            layer_nbytes = each.slice_nbytes // each.layers  # of a GPU's copy, only these layers are brought over
            part = kv[:, layers.start * layer_nbytes : layers.stop * layer_nbytes]
            self._device.gather_part(lambda out: each.gather([chunk.blocks], out, layers), kv, part)

    def _end_save(self, save: Save, *, lost: Sequence[bytes] = ()) -> None:
        with self._lock:
            self._report.taken[save.job] += 1
            self._report.lost |= set(lost)
            if not self._rank.writes:
                self._report.stored.update(chunk.hash for chunk in save.chunks)

    def _store(self, chunk: SavedChunk, lora: str, row: int) -> None:
        began, nbytes, why = time.monotonic(), 0, ""
        try:
            if not self._breaker.allows():
                why = "gateway unavailable"
                return
            self._learn_ways()
            nbytes = self._send(chunk, with_lora(self._groups[chunk.group].space, lora), row)
            self._breaker.succeeded()
        except GatewayUnavailable as error:
            self._breaker.failed()
            why = type(error).__name__
        except GatewayError as error:
            _log.warning("a chunk is not stored: %s", error)
            why = error.code or "GatewayError"
        except Exception:
            _log.exception("a chunk is not stored")
            why = "defect"
        finally:
            self._save_rows.give(row)
            with self._lock:
                if why:
                    self._report.lost.add(chunk.hash)
                else:
                    self._report.stored[chunk.hash] += 1
            if why:
                self.tally.not_stored(why, 1)
            else:
                self.tally.stored(nbytes, time.monotonic() - began)

    def _send(self, chunk: SavedChunk, space: Space, row: int) -> int:
        """Store a chunk, or this rank's part of it; how many bytes of KV were sent, 0 when it was there already."""
        slice_nbytes = self._plans[chunk.group].slice_nbytes
        kv = self._save_rows.body(row, slice_nbytes)[DATA_START:]
        if self._rank.is_whole:
            codec = self._settings.lossless
            lossless = RAW if codec == "none" else codec
            body = encode_body(space, chunk.hash, chunk.parent, chunk.first_token, kv, lossless=lossless)
            sent = self._writer.put(space, chunk.hash, body)
            return sum(map(len, body)) - DATA_START if sent else 0
        heads = self._rank.heads if space.layout.parts == 2 else None
        part = Slice(self._groups[chunk.group].layers, heads, kv)
        writer, name = self._writer, self._rank.writer
        sent = writer.write_slice(space, chunk.hash, chunk.parent, chunk.first_token, part, name)
        return slice_nbytes if sent else 0
