"""The peer tier: what other gateways of the cluster have in their memory and private tiers, read over HTTP.

Invariants
1. A gateway is asked for what it has itself, and never asks others for that: one hop.
2. Rendezvous hashing over the gateways that answer says whom to ask for a name first, and then whom, `ask` in all; a
   lookup makes one call to each gateway concerned a turn (and one more for each further MAX_KEYS names).
3. What a gateway says of an object is consistent in itself before it is believed, and every block is held against it.
4. A gateway that does not answer, or whose answer is wrong, is left alone for `rest`, each time it happens again for
   twice as long. The tier counts as away only when no gateway answers.

Nothing is written here: what is read from a peer comes into this gateway's own tiers by the rules of the store.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from kvgate.auth.sigv4 import Credential
from kvgate.config import Seconds, Secret, option
from kvgate.errors import ConfigError, NotAdmitted, NotInTier, TierAway, TierError
from kvgate.http.deadline import Deadline
from kvgate.http.endpoint import parse_endpoint
from kvgate.memory.digest import span_of_blocks
from kvgate.memory.holding import run_holding
from kvgate.memory.lease import Lease
from kvgate.memory.threads import started_threads
from kvgate.tiers.base import Arrived, Copy, Name, Record, Upload, Usage
from kvgate.tiers.disk_streams import steps_of
from kvgate.tiers.peer_client import Found, PeerClient
from kvgate.tiers.peer_directory import MAX_PEERS, Directory
from kvgate.tiers.peer_records import MAX_KEYS
from kvgate.tiers.rendezvous import ranking

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BEATS_A_TTL = 3
_LONGEST_REST_S = 4.0
"""A gateway that is back is found again within this time, unless `rest` is longer."""

_READ_S, _SLOWEST_NBYTES_A_S = 10.0, 1 << 20
"""A read that nobody has cut ends at last after these seconds, and one for each so many bytes."""

_SLOW_S, _SLOW_NBYTES_A_S = 2.0, 32 << 20
"""A read that is cut after these was too slow; one that is cut before was not wanted any more."""

_SLOW_ANSWER_S = 0.2
"""As long for a call that asks what there is."""


@dataclass(frozen=True)
class PeerConfig:
    """How this gateway finds the others, and how it asks them. They prove themselves with `cluster`."""

    urls: tuple[str, ...] = option(
        default=(), help="the other gateways, such as http://10.0.0.2:9000; with `advertise`, its own may be among them"
    )
    directory: Secret | None = option(
        default=None,
        help="a Redis in which gateways find each other, such as redis://10.0.0.5:6379/0, and only they may write",
    )
    directory_key: str = option(default="kvgate:gateways", help="the key of that directory, one for each cluster")
    directory_ttl: Seconds = option(
        default=Seconds(10.0), help="how long after its last sign of life a gateway leaves the directory"
    )
    advertise: str | None = option(
        default=None, help="the URL at which others reach this gateway; it is entered in the directory"
    )
    ask: int = option(default=3, help="how many gateways are asked for a name, one after the other")
    ask_timeout: Seconds = option(
        default=Seconds(0.2), help="how long one gateway may take to say what it has; then the next one is asked"
    )
    rest: Seconds = option(
        default=Seconds(1.0), help="how long a gateway that failed is left alone, and twice as long each further time"
    )
    threads: int = option(default=16, help="objects read at the same time from all gateways, and as many calls to ask")
    remembered: int = option(
        default=10_000, help="objects of which it is remembered who has them, so that they are not looked up twice"
    )
    tls_ca: Path | None = option(
        default=None, help="certificates that https URLs are held against, in PEM; by default those of the system"
    )

    def __post_init__(self) -> None:
        if not self.urls and self.directory is None:
            raise ConfigError("urls: expected at least one, or a `directory`")
        for url in self.urls:
            parse_endpoint(url, "a URL of `urls`")
        if self.advertise is not None:
            parse_endpoint(self.advertise, "advertise")
        for key, most in (("ask", 64), ("threads", 256), ("remembered", 10_000_000)):
            if not 1 <= getattr(self, key) <= most:
                raise ConfigError(f"{key}: expected 1 to {most}, got {getattr(self, key)}")
        for key in ("directory_ttl", "ask_timeout", "rest"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key}: expected more than 0 s")
        if len(self.urls) > MAX_PEERS:
            raise ConfigError(f"urls: expected at most {MAX_PEERS}")


class _Peer:
    """A gateway, and whether it is to be asked now."""

    def __init__(self, client: PeerClient) -> None:
        self.client = client
        self.failures = 0
        self.rests_until = 0.0

    def fail(self, error: TierError, rest_s: float) -> None:
        """Note that it did not answer, or not rightly."""
        self.failures += 1
        longest_s = max(rest_s, _LONGEST_REST_S)
        self.rests_until = time.monotonic() + min(rest_s * 2 ** min(self.failures - 1, 10), longest_s)
        if self.failures == 1:
            logger.warning("a gateway is left alone for a while: %s", error)

    def succeed(self) -> None:
        """Note that it answered."""
        if self.failures:
            logger.info("%s answers again", self.client.url)
        self.failures = 0
        self.rests_until = 0.0


class PeerTier:
    """See the module."""

    name = "peer"
    shared = True
    read_only = True
    Config = PeerConfig

    def __init__(self, config: PeerConfig) -> None:
        """Raises ConfigError for a directory or for certificates that cannot be used."""
        self._config = config
        self._mine = str(parse_endpoint(config.advertise)) if config.advertise else None
        self._static = [url for url in (str(parse_endpoint(url)) for url in config.urls) if url != self._mine]
        self._directory = self._make_directory()
        try:
            self._tls = ssl.create_default_context(cafile=config.tls_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"tls_ca: {config.tls_ca} cannot be used ({error})") from error
        self._asking = started_threads(config.threads, "kvgate-peer-ask")
        self._reading = started_threads(config.threads, "kvgate-peer-read")
        self._peers: dict[str, _Peer] = {}
        self._known: OrderedDict[Name, Found] = OrderedDict()
        self._credential: Credential | None = None
        self._keeping_up: asyncio.Task[None] | None = None
        self._directory_away = False

    def join(self, credential: Credential) -> None:
        """Take the credential of the cluster. Before `start`."""
        self._credential = credential

    def _make_directory(self) -> Directory | None:
        config = self._config
        if config.directory is None:
            return None
        return Directory(str(config.directory), config.directory_key, config.directory_ttl, self._mine)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See SharedTier. A directory that is away is looked at again later. Raises TierError without a credential."""
        if self._credential is None:
            raise TierError("the peer tier needs the credential of a cluster (`cluster` in the configuration)")
        self._settle(self._static)
        if self._directory is not None:
            await self._beat(self._directory)
            self._keeping_up = asyncio.create_task(self._keep_up(self._directory))

    async def close(self) -> None:
        """See Tier."""
        if self._keeping_up is not None:
            self._keeping_up.cancel()
            await asyncio.gather(self._keeping_up, return_exceptions=True)
        if self._directory is not None:
            await self._directory.leave()
        for executor in (self._asking, self._reading):
            await asyncio.to_thread(executor.shutdown)
        self._settle([])

    async def _keep_up(self, directory: Directory) -> None:
        while True:
            await asyncio.sleep(self._config.directory_ttl / _BEATS_A_TTL)
            await self._beat(directory)

    async def _beat(self, directory: Directory) -> None:
        """Enter this gateway, and take over who else is there. While the directory is away, those stay who were."""
        try:
            urls = await directory.beat()
        except TierAway as error:
            if not self._directory_away:
                logger.warning("%s tier: %s", self.name, error)
            self._directory_away = True
        else:
            self._directory_away = False
            self._settle([*self._static, *urls])

    def _settle(self, urls: Iterable[str]) -> None:
        """Ask these gateways from now on."""
        wanted = dict.fromkeys(urls)
        for url in [url for url in self._peers if url not in wanted]:
            self._peers.pop(url).client.close()
            logger.info("%s tier: %s is gone", self.name, url)
        for url in wanted:
            if url not in self._peers:
                assert self._credential is not None
                self._peers[url] = _Peer(PeerClient(url, self._credential, self._tls, 2 * self._config.threads))
                logger.info("%s tier: %s is there", self.name, url)

    # --- what is never done -------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """See Tier: nothing is put there."""
        return Usage(0, None)

    def room(self, tenant: str) -> int:
        """See Tier."""
        return 0

    def limit(self) -> int:
        """See Tier."""
        return 0

    async def begin(self, tenant: str, nbytes: int | None) -> Upload:
        """Not called; see `Tier.read_only`."""
        self._refuse()

    async def publish(self, record: Record, copy: Copy) -> None:
        """Not called; see `Tier.read_only`."""
        self._refuse()

    async def delete(self, record: Record, copy: Copy) -> None:
        """Not called; see `Tier.read_only`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotAdmitted("other gateways are read only")

    # --- what others have ---------------------------------------------------------------------------------------------

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        """See SharedTier. Raises TierAway when no gateway answers."""
        records: list[Record | None] = [None] * len(names)
        awake = self._awake()
        if not names or not self._peers:
            return records
        if not awake:
            raise TierAway(f"none of the {len(self._peers)} other gateways answers")
        plans = await run_holding((), self._asking, _plans, awake, names, self._config.ask)
        left, answered = list(range(len(names))), False
        for turn in range(min(self._config.ask, len(awake))):
            calls = _calls(turn, plans, names, left)
            answers = await asyncio.gather(*[self._ask(url, [names[at] for at in ats]) for url, ats in calls])
            for (_, ats), answer in zip(calls, answers, strict=True):
                answered = answered or answer is not None
                for at, found in zip(ats, answer or (), strict=answer is not None):
                    if found is not None:
                        records[at] = found.record
                        self._remember(found)
            left = [at for at in left if records[at] is None]
            if not left:
                break
        if not answered:
            raise TierAway("no gateway that was asked has answered")
        return records

    def open(self, record: Record, copy: Copy) -> PeerReader:
        """See Tier."""
        return PeerReader(self, record)

    async def locate(self, record: Record) -> Found:
        """Who has exactly this object. Raises NotInTier, TierAway."""
        name = Name(record.tenant, record.bucket, record.key)
        if self._recall(name) is None:
            await self.lookup([name])
        found = self._recall(name)
        if found is None or not found.record.same_body(record):
            raise NotInTier("no gateway that was asked has this object")
        return found

    async def read(self, found: Found, start: int, lease: Lease, nbytes: int, arrived: Arrived | None) -> array[int]:
        """See Reader.read_into."""
        peer = self._peers.get(found.url)
        if peer is None:
            raise TierAway(f"{found.url} is gone")
        deadline = Deadline(_READ_S + nbytes / _SLOWEST_NBYTES_A_S)
        steps, began = steps_of(lease, nbytes), time.monotonic()
        work = run_holding(lease, self._reading, peer.client.read, found, start, steps, arrived, deadline)
        try:
            await _cutting(deadline, work)
        except NotInTier:
            self._forget(found)
            raise
        except TierError as error:
            self._forget(found)
            peer.fail(error, self._config.rest)
            raise
        except asyncio.CancelledError:
            if time.monotonic() - began > _SLOW_S + nbytes / _SLOW_NBYTES_A_S:  # whoever waited had reason to give up
                self._forget(found)
                peer.fail(TierAway(f"{found.url} is slow"), self._config.rest)
            raise
        peer.succeed()
        return found.blocks[span_of_blocks(start, start + nbytes)]

    async def _ask(self, url: str, names: Sequence[Name]) -> list[Found | None] | None:
        """What one gateway has of some objects of one bucket; None when it gives no answer."""
        peer = self._peers.get(url)
        if peer is None:
            return None
        deadline, began = Deadline(self._config.ask_timeout), time.monotonic()
        try:
            answer = await _cutting(deadline, run_holding((), self._asking, peer.client.records, names, deadline))
        except TierError as error:
            peer.fail(error, self._config.rest)
            return None
        except asyncio.CancelledError:
            if time.monotonic() - began > _SLOW_ANSWER_S:
                peer.fail(TierAway(f"{url} is slow to say what it has"), self._config.rest)
            raise
        peer.succeed()
        return answer

    def _awake(self) -> list[str]:
        now = time.monotonic()
        return [url for url, peer in self._peers.items() if peer.rests_until <= now]

    def _recall(self, name: Name) -> Found | None:
        """Who is known to have an object and can be asked for it."""
        found = self._known.get(name)
        peer = self._peers.get(found.url) if found is not None else None
        return found if peer is not None and peer.rests_until <= time.monotonic() else None

    def _remember(self, found: Found) -> None:
        name = Name(*found.record[:3])
        self._known[name] = found
        self._known.move_to_end(name)
        if len(self._known) > self._config.remembered:
            self._known.popitem(last=False)

    def _forget(self, found: Found) -> None:
        self._known.pop(Name(*found.record[:3]), None)


class PeerReader:
    """One object of another gateway. Nothing is held there between two reads."""

    def __init__(self, tier: PeerTier, record: Record) -> None:
        self._tier = tier
        self._record = record

    async def read_into(self, start: int, lease: Lease, nbytes: int, arrived: Arrived | None = None) -> array[int]:
        """See Reader. A gateway that has lost the object since is no miss before the others were asked once more."""
        found = await self._tier.locate(self._record)
        if not nbytes:
            return array("Q")
        try:
            return await self._tier.read(found, start, lease, nbytes, arrived)
        except NotInTier:
            found = await self._tier.locate(self._record)
        return await self._tier.read(found, start, lease, nbytes, arrived)

    async def close(self) -> None:
        """See Reader."""


def _plans(urls: Sequence[str], names: Sequence[Name], ask: int) -> list[list[str]]:
    """Whom to ask for each name, in order."""
    return [ranking(urls, "\0".join(name), ask) for name in names]


def _calls(
    turn: int, plans: Sequence[Sequence[str]], names: Sequence[Name], left: Iterable[int]
) -> list[tuple[str, list[int]]]:
    """Whom to ask in this turn, and for which names, by their place: those of one bucket in a call."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for at in left:
        groups[plans[at][turn], names[at].tenant, names[at].bucket].append(at)
    return [
        (url, ats[start : start + MAX_KEYS])
        for (url, _, _), ats in groups.items()
        for start in range(0, len(ats), MAX_KEYS)
    ]


async def _cutting(deadline: Deadline, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, which runs under `deadline`; it ends soon when the caller is cancelled."""
    try:
        return await work
    except asyncio.CancelledError:
        deadline.cut()
        raise
