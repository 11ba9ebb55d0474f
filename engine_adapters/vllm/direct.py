"""The scheduler's half of handing prompts over directly: which blocks are offered, and what is fetched into which.

1. Blocks that are offered are held (`BlockPool.touch`) until every worker has reported that nobody reads them any more.
2. A request is fetched directly once; should that fail, it goes the way of all others, and asks the gateway.
3. What a request says about where its KV is comes from whoever sent it. It is believed only when it names exactly this
   prompt, and the workers call no address outside the networks they may call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine_adapters.vllm.job import Fetch, Offer, Report, Work
from engine_adapters.vllm.prompt import prompt_digest
from engine_adapters.vllm.space import Group
from kvgate.errors import KVGateError

_KEY = "kvgate_direct"
_MAX_RANKS = 1024
_MAX_ID = 400

Runs = tuple[tuple[int, tuple[int, ...]], ...]


class Direct:
    """Only from the scheduler's thread."""

    def __init__(self, groups: Sequence[Group], workers: int) -> None:
        self._groups = tuple(groups)
        self._workers = workers
        self._at: tuple[tuple[str, int], ...] = ()
        self._pool: Any = None
        self._offers: list[Offer] = []
        self._offered: dict[
            int, tuple[list[Any], int]
        ] = {}  # of each job its blocks, and how many workers are to report
        self._next_job = 0
        self._fetches: list[Fetch] = []
        self._given_up: list[str] = []
        self._sources: dict[str, tuple[str, tuple[tuple[str, int], ...]]] = {}
        self._tried: set[str] = set()
        self._fetching: dict[str, int] = {}

    @property
    def held_blocks(self) -> int:
        return sum(len(blocks) for blocks, _ in self._offered.values())

    def bind(self, block_pool: Any) -> None:
        """Take vLLM's block pool."""
        self._pool = block_pool

    def reached_at(self, at: Sequence[tuple[str, int]]) -> None:
        """Where this engine's workers are called, by rank."""
        self._at = tuple(at)

    # --- a prefill instance ---

    def offer(self, request: Any, block_ids: Sequence[Sequence[int]], room: int) -> dict[str, Any]:
        """What a decode instance is to be told so that it can fetch a computed prompt; empty if it cannot.

        room: how many blocks may be held for it
        """
        if (
            self._pool is None
            or len(self._at) != self._workers
            or request.num_computed_tokens < request.num_prompt_tokens
        ):
            return {}
        name = self._name(request)
        runs = self._runs(block_ids, request.num_prompt_tokens, 0)
        blocks = [self._pool.blocks[block] for _, ids in runs for block in ids]
        if not name or not blocks or len(blocks) > room:
            return {}
        self._pool.touch(blocks)
        self._offered[self._next_job] = (blocks, self._workers)
        offer = Offer(self._next_job, f"{request.request_id[:_MAX_ID]}/{name}", runs)
        self._offers.append(offer)
        self._next_job += 1
        return {_KEY: {"id": offer.id, "at": [list(at) for at in self._at]}}

    # --- a decode instance ---

    def tokens(self, request: Any, local: int) -> int:
        """How many tokens beyond the `local` first can be fetched directly; 0 when they are not to be."""
        if request.request_id in self._tried:
            return 0
        source = self._sources.get(request.request_id) or self._source(request)
        if source is None:
            self._tried.add(request.request_id)
            return 0
        self._sources[request.request_id] = source
        return max(0, int(request.num_prompt_tokens) - local)

    def fetch(self, request: Any, block_ids: Sequence[Sequence[int]], local: int) -> bool:
        """Fetch the KV beyond the `local` first tokens into a request's blocks; False when `tokens` gave none."""
        source = self._sources.pop(request.request_id, None)
        if source is None:
            return False
        self._tried.add(request.request_id)
        self._fetching[request.request_id] = self._workers
        runs = self._runs(block_ids, request.num_prompt_tokens, local)
        self._fetches.append(Fetch(request.request_id, *source, runs))
        return True

    def forget(self, request_id: str) -> None:
        """A request has ended. A fetch that is under way is given up, and still reported by every worker."""
        self._tried.discard(request_id)
        self._sources.pop(request_id, None)
        if request_id in self._fetching:
            self._given_up.append(request_id)

    # --- both ---

    def step(self, work: Work) -> None:
        """Add what the workers are to begin."""
        work.offers, self._offers = self._offers, []
        work.fetches, self._fetches = self._fetches, []
        work.given_up, self._given_up = self._given_up, []

    def ended(self, report: Report) -> None:
        """Take note of what the workers have done."""
        for job, workers in report.offered.items():
            blocks, left = self._offered[job]
            self._offered[job] = (blocks, left - workers)
            if left <= workers:
                del self._offered[job]
                self._pool.free_blocks(reversed(blocks))
        for request_id, workers in report.loaded.items():
            if request_id in self._fetching:
                self._fetching[request_id] -= workers
                if self._fetching[request_id] <= 0:
                    del self._fetching[request_id]

    def _name(self, request: Any) -> str:
        """The digest of the prompt; empty for one that is not handed over directly."""
        if request.lora_request is not None:  # its digest is taken from files, which the scheduler does not wait for
            return ""
        try:
            return prompt_digest(request, [group.space for group in self._groups]).hex()
        except (KVGateError, ValueError, OverflowError):
            return ""

    def _source(self, request: Any) -> tuple[str, tuple[tuple[str, int], ...]] | None:
        params = request.kv_transfer_params
        told = params.get(_KEY) if isinstance(params, Mapping) and params.get("do_remote_prefill") else None
        match told:
            case {"id": str(offered), "at": [*at]} if len(offered) <= _MAX_ID + 65 and 1 <= len(at) <= _MAX_RANKS:
                pass
            case _:
                return None
        where = tuple((each[0], each[1]) for each in at if _is_address(each))
        name = self._name(request)
        # Workers of another number of ranks hold other heads; the gateway has the whole of them.
        if len(where) != len(at) or len(where) != self._workers or not name or not offered.endswith(f"/{name}"):
            return None
        return offered, where

    def _runs(self, block_ids: Sequence[Sequence[int]], tokens: int, local: int) -> Runs:
        """For each group the blocks from the first wanted one to that of the last token, as far as it keeps them."""
        null = self._pool.null_block.block_id if self._pool is not None else 0
        runs = []
        for group in self._groups:
            stop = -(-tokens // group.block_tokens)
            ids = block_ids[group.index][:stop]
            first = local // group.block_tokens
            if null in ids[first:]:
                first = stop - ids[::-1].index(null)
            runs.append((first, tuple(ids[first:])))
        return tuple(runs)


def _is_address(value: Any) -> bool:
    match value:
        case [str(host), int(port)]:
            return len(host) <= 64 and type(port) is int and 0 < port < 1 << 16
    return False
