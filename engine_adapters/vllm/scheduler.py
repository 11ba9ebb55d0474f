"""The scheduler's half of the connector: what to load and what to save, decided without waiting.

Invariants
1. Nothing here waits for the gateway or reads a file: prompts are looked up in the background, and a request is asked
   to come again until the result is there or its deadline has passed.
2. A lease that a lookup has taken is released once: when its load has ended, or when nothing is to be loaded.
3. Every block that a save reads is held (`BlockPool.touch`) from the step that announces the save until every worker
   has taken its KV out, whatever becomes of the request meanwhile.
4. Only tokens that are certain are named and saved: prompt tokens that this step computes, and output tokens whose
   step has ended. Where a step's loads can fail while it runs, all that it computes becomes certain by its end alone.
5. A request's chunks are saved in order; where one cannot be, those after it are not for now.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine_adapters.paged_copy import SKIP
from engine_adapters.vllm import handoff
from engine_adapters.vllm.adapters import Adapters
from engine_adapters.vllm.direct import Direct
from engine_adapters.vllm.events import StoredEvents
from engine_adapters.vllm.evictable import Evictable
from engine_adapters.vllm.job import Load, LoadPart, Report, Save, SavedChunk, Work
from engine_adapters.vllm.lookup import Found, Lookup, Lookups
from engine_adapters.vllm.multimodal import is_named_by_caller
from engine_adapters.vllm.prompt import Chains
from engine_adapters.vllm.settings import Settings
from engine_adapters.vllm.space import Group, with_lora
from kvgate.errors import KVGateError, UnsupportedModel

_log = logging.getLogger(__name__)

_MAX_HELD_SHARE = 0.5
"""Of all blocks, how many saves and offers may hold at the same time; beyond it there are no others."""


@dataclass(slots=True)
class _Tracked:
    """A request that vLLM knows.

    lookup:  under way, or late
    is_late: nobody waits for it any more; its names may still be of use
    found:   the result, as long as it may be loaded
    local:   how many local tokens the last answer was for
    tried:   how often the request had been preempted when it was last loaded; where that is asked for again, it failed
    handled: how many leading chunks are stored, about to be, or will not be
    """

    request: Any
    chains: Chains | None = None
    lookup: Lookup | None = None
    is_late: bool = False
    found: Found | None = None
    local: int = 0
    tried: int = -1
    handled: int = 0


@dataclass(slots=True)
class _Pending:
    """Something that every worker has to report. things: what is given back then."""

    workers: int
    things: list[Any]


@dataclass(slots=True)
class Counts:
    """What the scheduler's half has counted since it was last asked."""

    queried_tokens: int = 0
    hit_tokens: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    not_saved: Counter[str] = field(default_factory=Counter)


class Scheduling:
    """Decides loads and saves. Only from the scheduler's thread."""

    def __init__(
        self,
        settings: Settings,
        groups: Sequence[Group],
        lookups: Lookups,
        salt: Callable[[], bytes],
        *,
        workers: int,
        block_target: int,
        events: StoredEvents | None = None,
        direct: Direct | None = None,
    ) -> None:
        """salt: of the tenant; asked for in the background, and raises GatewayError
        workers:      how many report
        block_target: blocks that vLLM may need in one step, for `save: lazy`
        direct:       where prompts are also handed over without the gateway
        """
        self.counts = Counts()
        self._settings = settings
        self._groups = tuple(groups)
        self._lookups = lookups
        self._salt = salt
        self._workers = workers
        self._events = events
        self._direct = direct
        self._adapters = Adapters()
        self._requests: dict[str, _Tracked] = {}
        self._loads: list[Load] = []
        self._loading: dict[str, _Pending] = {}
        self._saves: list[Save] = []
        self._saving: dict[int, _Pending] = {}
        self._held_blocks = 0
        self._next_job = 0
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._in_flight: dict[bytes, int] = {}
        self._rests = False
        self._pool: Any = None
        self._evictable = Evictable(block_target) if settings.save == "lazy" else None
        # A step that loads has to compute a token. Between steps all may be loaded, and vLLM then computes the last
        # token again, for which a window begins one token earlier than the blocks that it keeps.
        self._computes_last = settings.load == "layerwise" or any(group.window is not None for group in groups)

    def bind(self, block_pool: Any) -> None:
        """Take vLLM's block pool, of which saves hold blocks."""
        self._pool = block_pool
        if self._direct is not None:
            self._direct.bind(block_pool)

    @property
    def holds_blocks(self) -> bool:
        """Whether blocks are held, or about to be, that vLLM could use otherwise."""
        return bool(self._saving or self._saves or (self._direct and self._direct.held_blocks))

    @property
    def expects_reports(self) -> bool:
        """Whether workers have something to report for which blocks or leases are held."""
        return self.holds_blocks or bool(self._loading)

    @property
    def _saves_anything(self) -> bool:
        return self._settings.save != "none" and self._pool is not None and not self._rests

    # --- what vLLM asks ---

    def arrive(self, request: Any) -> None:
        """Begin to look a new request up."""
        tracked = self._requests.setdefault(request.request_id, _Tracked(request))
        if tracked.lookup is None and tracked.found is None and not self._rests:
            self._look_up(tracked)

    def matched(self, request: Any, local: int) -> tuple[int | None, bool]:
        """How many tokens beyond the `local` first can be loaded, and whether between steps; None to be asked again."""
        if self._rests:
            return 0, False
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            tracked = self._requests[request.request_id] = _Tracked(request)
        if self._direct is not None and (tokens := self._direct.tokens(request, local)):
            tracked.local = local
            return tokens, True
        if tracked.tried == request.num_preemptions:
            return 0, False
        if tracked.found is not None and tracked.found.leases and tracked.found.expires_at < self._renew_at():
            self._let_go(tracked)
        if tracked.found is None:
            if tracked.is_late and self._resolve(tracked):  # too late for the last time that it was asked for
                self._let_go(tracked)
            if tracked.lookup is None:
                self._look_up(tracked)
            if not self._resolve(tracked):
                assert tracked.lookup is not None
                if not tracked.lookup.is_late:
                    return None, False
                tracked.is_late = True
                self.counts.missed["late"] += 1
                tracked.found = Found(None)
        assert tracked.found is not None
        tracked.local = local
        hit = tracked.found.chunks * self._settings.chunk_tokens - local
        return (hit, self._settings.load == "async") if hit > 0 else (0, False)

    def allocated(self, request: Any, blocks: Any, external: int) -> None:
        """Note the blocks for the `external` tokens that the last answer promised; with 0 nothing is to be loaded."""
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            return
        if external and self._direct and self._direct.fetch(request, blocks.get_block_ids(), tracked.local):
            self._loading[request.request_id] = _Pending(self._workers, [])
            self.counts.hit_tokens += external
            return
        if tracked.found is None:
            return
        if not external:
            self._let_go(tracked)
            return
        found, tracked.found = tracked.found, None
        assert found.chains is not None
        tracked.tried = request.num_preemptions
        chunk_tokens, block_ids = self._settings.chunk_tokens, blocks.get_block_ids()
        chunks = -(-(tracked.local + external) // chunk_tokens)
        parts = []
        for index, group in enumerate(self._groups):
            seen = Lookups.seen(group.window, chunks, chunk_tokens)
            wanted = range(max(tracked.local // chunk_tokens, seen.start), chunks)
            rows = tuple(self._row(group, block_ids[group.index], chunk, tracked.local) for chunk in wanted)
            parts.append(LoadPart(index, tuple(found.chains.hashes(index, wanted)), rows))
        lora = found.chains.spaces[0].lora
        layerwise = self._settings.load == "layerwise"
        self._loads.append(Load(request.request_id, lora, tuple(parts), float(self._settings.load_deadline), layerwise))
        self._loading[request.request_id] = _Pending(self._workers, found.leases)
        self.counts.hit_tokens += external

    def step(self, output: Any) -> Work:
        """The work that goes with a step of vLLM's."""
        if self._saves_anything:
            try:
                self._plan_step(output)
            except Exception:  # a defect of ours must not end the engine
                _log.exception("new chunks are not saved")
        work = Work(tuple(group.space.id for group in self._groups), self._loads, self._saves)
        self._loads, self._saves = [], []
        if self._direct is not None:
            self._direct.step(work)
        return work

    def finished(self, request: Any, block_ids: Sequence[Sequence[int]]) -> dict[str, Any] | None:
        """Save what is left of a request whose blocks vLLM is about to free, and forget the request.

        Returns what a decode instance is to be told of one that was to be handed over.
        """
        tracked = self._requests.pop(request.request_id, None)
        if tracked is None:
            return None
        loading = request.request_id in self._loading
        if self._saves_anything and not loading:
            self._plan(tracked, self._certain_tokens(request, 0), block_ids)
        self._let_go(tracked)
        if tracked.lookup is not None:
            self._lookups.forget(tracked.lookup)
        chunks = min(tracked.handled, request.num_prompt_tokens // self._settings.chunk_tokens)
        told = handoff.announcement(request.kv_transfer_params, chunks)
        if self._direct is not None:
            self._direct.forget(request.request_id)
            if told is not None and not loading and not self._rests:
                told |= self._direct.offer(request, block_ids, self._room)
        return told

    def ended(self, output: Any) -> None:
        """Take note of what the workers have done."""
        report = output.kv_connector_worker_meta
        if not isinstance(report, Report):
            return
        if self._direct is not None:
            self._direct.ended(report)
        for request_id, workers in report.loaded.items():
            if leases := _reported(self._loading, request_id, workers):
                self._lookups.release(leases)
            if report.lost and (tracked := self._requests.get(request_id)):
                tracked.handled = 0  # what did not come is saved once it is computed
        for job, workers in report.taken.items():
            if blocks := _reported(self._saving, job, workers):
                self._held_blocks -= len(blocks)
                self._pool.free_blocks(reversed(blocks))
        for chunk_hash in report.lost:
            self._known.pop(chunk_hash, None)
            self._in_flight.pop(chunk_hash, None)
        for chunk_hash, workers in report.stored.items():
            if chunk_hash in self._in_flight:
                self._in_flight[chunk_hash] -= workers
                if self._in_flight[chunk_hash] <= 0:
                    del self._in_flight[chunk_hash]
                    if self._events is not None:
                        self._events.stored(chunk_hash)

    def reset(self) -> None:
        """Take nothing for stored any more; and where weights may change, look for nothing and save nothing any more.

        vLLM resets caches for new weights, among other reasons, and does not say for which. The spaces name the old.
        """
        self._known.clear()
        if self._settings.weights_may_change and not self._rests:
            self._rests = True
            _log.warning(
                "vLLM has reset its caches, maybe for new weights, so kvgate rests until the engine starts again; "
                "where weights never change, set weights_may_change to false"
            )

    # --- looking up ---

    def _renew_at(self) -> float:
        """Leases that end before are too short to begin a load with."""
        return time.monotonic() + min(float(self._settings.load_deadline), self._settings.lease / 2)

    def _look_up(self, tracked: _Tracked) -> None:
        request, groups, salt = tracked.request, self._groups, self._salt
        tokens = list(request.all_token_ids)
        chunks = (len(tokens) - self._computes_last) // self._settings.chunk_tokens
        known = tracked.chains

        def name() -> Chains:
            if known is not None:
                return known
            if is_named_by_caller(request):
                raise UnsupportedModel("an image or audio input has a name of its caller's, which others may have too")
            lora = self._adapters.digest(request.lora_request)
            return Chains(request, [with_lora(group.space, lora) for group in groups], salt())

        wait_for = handoff.expected_chunks(request.kv_transfer_params)
        self.counts.queried_tokens += len(tokens)
        tracked.is_late = False
        tracked.lookup = self._lookups.start(
            name,
            chunks,
            tokens,
            wait_for=wait_for,
            wait_s=float(self._settings.wait_for_handoff) if wait_for else 0.0,
            only_name=self._settings.load == "none",
        )

    def _resolve(self, tracked: _Tracked) -> bool:
        """Take a lookup's result over; False while there is none."""
        found = tracked.lookup.found if tracked.lookup is not None else None
        if found is None:
            return False
        tracked.lookup, tracked.chains, tracked.found = None, found.chains, found
        if found.why and not tracked.is_late:
            self.counts.missed[found.why] += 1
        if found.chains is not None:
            for group in range(len(self._groups)):
                for chunk_hash in found.chains.hashes(group, range(found.chunks)):
                    self._know(chunk_hash)
                if not found.why:  # the gateway may have evicted what it had
                    for chunk_hash in found.chains.hashes(group, range(found.chunks, found.asked)):
                        if chunk_hash not in self._in_flight:
                            self._known.pop(chunk_hash, None)
            tracked.handled = max(tracked.handled, found.chunks)
        return True

    def _let_go(self, tracked: _Tracked) -> None:
        if tracked.found is not None:
            self._lookups.release(tracked.found.leases)
            tracked.found = None

    def _row(self, group: Group, block_ids: Sequence[int], chunk: int, local: int) -> tuple[int, ...]:
        """The blocks of a chunk; SKIP for those that are local, or that the group does not keep."""
        count = self._settings.chunk_tokens // group.block_tokens
        first = chunk * count
        local_blocks = local // group.block_tokens
        null = self._pool.null_block.block_id if self._pool is not None else 0
        return tuple(
            SKIP if index < local_blocks or block_ids[index] == null else block_ids[index]
            for index in range(first, first + count)
        )

    # --- saving ---

    def _certain_tokens(self, request: Any, new_tokens: int) -> int:
        """How many leading tokens have KV that stays, once the step with these new tokens has run."""
        computed: int = request.num_computed_tokens
        settled: int = min(computed - request.num_in_flight_tokens, len(request.all_token_ids))
        if self._settings.load == "layerwise":
            return settled
        of_prompt: int = min(computed + new_tokens, request.num_prompt_tokens)
        return max(of_prompt, settled)

    def _plan_step(self, output: Any) -> None:
        state = output.kv_connector_block_state
        for request_id, new_tokens in output.num_scheduled_tokens.items():
            tracked = self._requests.get(request_id)
            block_ids = state.get_block_ids(request_id) if tracked is not None and state is not None else None
            if tracked is not None and block_ids is not None:
                self._plan(tracked, self._certain_tokens(tracked.request, new_tokens), block_ids)
        if self._evictable is not None:
            for candidate in self._evictable.about_to_go(self._pool, len(self._groups)):
                self._save(candidate.lora, [candidate.chunk])

    def _plan(self, tracked: _Tracked, certain: int, block_ids: Sequence[Sequence[int]]) -> None:
        """Save the chunks that are full with the first `certain` tokens of a request and not stored yet."""
        chunks = certain // self._settings.chunk_tokens
        if chunks <= tracked.handled:
            return
        if self._resolve(tracked):  # too late to load anything
            self._let_go(tracked)
        chains = tracked.chains
        if chains is None:
            return
        try:
            chains.extend(tracked.request.all_token_ids, chunks)
        except (KVGateError, ValueError) as error:
            _log.warning("a request's output is not shared: %s", error)
            tracked.handled = len(tracked.request.all_token_ids)  # more than it ever has chunks
            return
        lora = chains.spaces[0].lora
        for chunk in range(tracked.handled, chunks):
            new = self._new_parts(chains, chunk, block_ids)
            if self._evictable is not None and not handoff.is_asked_for(tracked.request.kv_transfer_params):
                for part in new:
                    self._evictable.note(lora, part, self._pool)
            elif new and not self._save(lora, new, lambda part: self._describe(tracked, part)):
                return
            tracked.handled = chunk + 1

    def _new_parts(self, chains: Chains, chunk: int, block_ids: Sequence[Sequence[int]]) -> list[SavedChunk]:
        """What of a chunk is in blocks and not known to be stored, group by group."""
        parts = []
        null = self._pool.null_block.block_id
        for index, group in enumerate(self._groups):
            count = self._settings.chunk_tokens // group.block_tokens
            blocks = tuple(block_ids[group.index][chunk * count : (chunk + 1) * count])
            chunk_hash = chains.hash(index, chunk)
            if chunk_hash in self._known:
                self._known.move_to_end(chunk_hash)
            elif len(blocks) == count and null not in blocks:
                first_token = chunk * self._settings.chunk_tokens
                parts.append(SavedChunk(index, chunk_hash, chains.hash(index, chunk - 1), first_token, blocks))
        return parts

    def _save(self, lora: str, parts: list[SavedChunk], describe: Callable[[SavedChunk], None] | None = None) -> bool:
        """Hold the blocks of chunks and have them saved; False when too many are held already."""
        parts = [part for part in parts if part.hash not in self._known]
        blocks = [self._pool.blocks[block] for part in parts for block in part.blocks]
        if len(blocks) > self._room:
            self.counts.not_saved["too many blocks held"] += len(parts)
            return False
        if parts:
            self._pool.touch(blocks)
            self._held_blocks += len(blocks)
            self._saving[self._next_job] = _Pending(self._workers, blocks)
            self._saves.append(Save(self._next_job, lora, tuple(parts)))
            self._next_job += 1
            for part in parts:
                self._know(part.hash)
                self._in_flight[part.hash] = self._workers
                if describe is not None:
                    describe(part)
        return True

    @property
    def _room(self) -> int:
        """How many blocks more may be held."""
        held = self._held_blocks + (self._direct.held_blocks if self._direct is not None else 0)
        return int(_MAX_HELD_SHARE * self._pool.num_gpu_blocks) - held

    def _describe(self, tracked: _Tracked, part: SavedChunk) -> None:
        if self._events is not None:
            group = self._groups[part.group]
            self._events.describe(part, tracked.request, group, self._settings.chunk_tokens)

    def _know(self, chunk_hash: bytes) -> None:
        self._known[chunk_hash] = None
        self._known.move_to_end(chunk_hash)
        if len(self._known) > self._settings.known_chunks:
            self._known.popitem(last=False)


def _reported(pending: dict[Any, _Pending], key: Any, workers: int) -> list[Any]:
    """What is to be given back now that so many more workers have reported."""
    waiting = pending.get(key)
    if waiting is None:
        return []
    waiting.workers -= workers
    return pending.pop(key).things if waiting.workers <= 0 else []
