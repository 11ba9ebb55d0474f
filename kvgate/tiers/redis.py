"""The redis tier: objects in Redis or Valkey, shared by every gateway that uses the same server or cluster.

Names, below the configured prefix; a cluster hashes all of a name, because the first braces are empty:

    head:{}<tenant>/<bucket>/<key>   a string: which body, and the footer that says what it must be (`redis_head.py`)
    body:<id>                        a hash with a field a piece: 0, 1, …; the id is random, 32 hexadecimal digits

Tenants and buckets have no slash in their names, so that no two objects have the same.

Invariants
1. An object is there when its head is. A head is set only if there is none, which one server decides: the first writer
   wins. Nothing changes a head afterwards but its deletion.
2. A body is written once, by one upload, and is one key: it expires, and is evicted, as a whole.
3. A body expires by itself until its head is there. Afterwards both expire after `ttl` without a read.
4. What is deleted is the head that was looked at and the body that it names; never what has come in its place.
5. Every byte is verified against the footer, and the footer against its checksum and the record.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from redis import exceptions

from kvgate.config import KiB, Seconds, Secret, Size, option
from kvgate.errors import ConfigError, CorruptCopy, NotInTier, TierError, TierFull
from kvgate.tiers.base import Copy, Name, Record, Usage
from kvgate.tiers.redis_errors import FOREIGN, LOST, MOVED_ON, tier_error
from kvgate.tiers.redis_head import MAX_PIECE_NBYTES, MIN_PIECE_NBYTES, Head, decode_head
from kvgate.tiers.redis_place import Address, parse_place
from kvgate.tiers.redis_pool import Pool
from kvgate.tiers.redis_routes import Route, dialler, route_to
from kvgate.tiers.redis_streams import RedisReader, RedisUpload, footprint
from kvgate.tiers.redis_wire import Argument, Reply, Wire, checked

T = TypeVar("T")

_MAX_HOPS = 5
_BATCH = 128
_ROUNDS = 3
_MOST_REMEMBERED = 1 << 20
_DELETE_IF_EQUAL = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end return 0"


@dataclass(frozen=True)
class RedisConfig:
    """Which Redis, as whom, and how objects lie there."""

    url: str = option(
        help="redis://host:6379/0, unix:///path, redis+sentinel://host:26379,host:26379/service/0 or "
        "redis+cluster://host:6379,host:6379; with rediss instead of redis by TLS"
    )
    username: str | None = option(default=None, help="the ACL user; by default the server's default user")
    password: Secret | None = option(default=None, help="the user's password")
    sentinel_username: str | None = option(default=None, help="as username, for the sentinels")
    sentinel_password: Secret | None = option(default=None, help="as password, for the sentinels")
    tls_ca: Path | None = option(
        default=None, help="PEM file of the authorities to trust besides the system's, with rediss"
    )
    tls_certificate: Path | None = option(default=None, help="PEM file with our certificate, where the server asks")
    tls_key: Path | None = option(default=None, help="PEM file with the private key of tls_certificate")
    prefix: str = option(default="kvgate:", help="what every key in Redis begins with; gateways share by the same one")
    piece: Size = option(
        default=Size(1020 * KiB),
        help="bytes of a body that one command moves; a little less than a power of two wastes the least memory, and "
        "smaller ones let other users of the server wait less",
    )
    ttl: Seconds | None = option(
        default=Seconds(7 * 86400.0),
        help="how long an object stays after it was last written or read; null keeps it until Redis evicts it",
    )
    upload_ttl: Seconds = option(
        default=Seconds(600.0), help="how long after its last byte the body of an unfinished write stays"
    )
    capacity: Size | None = option(
        default=None, help="bytes that this gateway may have put there; by default Redis itself sets the limit"
    )
    read_only: bool = option(
        default=False, help="never write, not even to renew the ttl: for a replica, or a user who may only read"
    )
    connections: int = option(default=16, help="connections to each server")
    connect_timeout: Seconds = option(
        default=Seconds(2.0),
        help="how long a connection may take, with TLS and the password, or a sentinel or node to say who has what",
    )

    def __post_init__(self) -> None:
        parse_place(self.url)
        if any(brace in self.prefix for brace in "{}\n\r ") or len(self.prefix) > 64:
            raise ConfigError("prefix: expected at most 64 characters, without braces and blanks")
        if not MIN_PIECE_NBYTES <= self.piece <= MAX_PIECE_NBYTES:
            raise ConfigError(f"piece: expected 64KiB to 16MiB, got {self.piece} bytes")
        if not 1 <= self.connections <= 1024:
            raise ConfigError(f"connections: expected 1 to 1024, got {self.connections}")
        for key in ("ttl", "upload_ttl", "connect_timeout"):
            value = getattr(self, key)
            if value is not None and value < 0.001:
                raise ConfigError(f"{key}: expected at least 1ms, got {value:g} s")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate: expected together with tls_key, or neither")


class RedisTier:
    """Objects in Redis. See the module's invariants."""

    name = "redis"
    shared = True
    Config = RedisConfig

    def __init__(self, config: RedisConfig) -> None:
        self.read_only = config.read_only
        self.piece_nbytes = int(config.piece)
        self.ttl_ms = None if config.ttl is None else int(config.ttl * 1000)
        self.upload_ttl_ms = int(config.upload_ttl * 1000)
        self._config = config
        self._prefix = config.prefix.encode()
        self._used_nbytes = 0
        self._ours: dict[int, int] = {}  # a hash of the record to what it takes, of what this gateway has put there
        self._route_: Route | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, found: Callable[[Iterable[tuple[Record, Copy]]], None]) -> None:
        """See SharedTier. Connects to nothing: a Redis that is away does not keep a gateway from starting."""
        config, place = self._config, parse_place(self._config.url)
        tls = await asyncio.to_thread(_tls, config) if place.tls else None
        user = {"username": config.username, "password": config.password}
        asked = {"username": config.sentinel_username, "password": config.sentinel_password}
        self._route_ = route_to(
            place,
            dialler(tls, config.connect_timeout, {**user, "db": place.db}),
            dialler(tls, config.connect_timeout, asked),
            config.connections,
            config.connect_timeout,
        )

    async def close(self) -> None:
        """See Tier."""
        if self._route_ is not None:
            await self._route_.close()

    # --- room ---------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """See Tier."""
        return Usage(self._used_nbytes, self._config.capacity)

    def room(self, tenant: str) -> int:
        """See Tier."""
        return self._body_nbytes(self._used_nbytes)

    def limit(self) -> int:
        """See Tier."""
        return self._body_nbytes(0)

    def _body_nbytes(self, used_nbytes: int) -> int:
        """The largest body that fits, to within a piece's overhead, when so much is used."""
        if self._config.capacity is None:
            return sys.maxsize
        left = self._config.capacity - used_nbytes
        return max(0, left - footprint(left, self.piece_nbytes) + left)

    def take(self, nbytes: int) -> None:
        """Count `nbytes` more as taken, or give back when negative; for this tier's uploads."""
        self._used_nbytes += nbytes

    def remember(self, record: Record, nbytes: int) -> None:
        """Note what an object of ours takes, which is counted already, until it is deleted."""
        self._used_nbytes -= self._ours.pop(_identity(record), 0)
        self._ours[_identity(record)] = nbytes
        if len(self._ours) > _MOST_REMEMBERED:
            self._used_nbytes -= self._ours.pop(next(iter(self._ours)))

    # --- copies -------------------------------------------------------------------------------------------------------

    async def begin(self, tenant: str, nbytes: int | None) -> RedisUpload:
        """See Tier."""
        if nbytes is not None and nbytes > self.room(tenant):
            raise TierFull(f"the redis tier has no room for {nbytes} bytes")
        return RedisUpload(self, nbytes)

    async def publish(self, record: Record, copy: Copy) -> None:
        """See SharedTier."""

    def open(self, record: Record, copy: Copy) -> RedisReader:
        """See Tier."""
        return RedisReader(self, record)

    async def delete(self, record: Record, copy: Copy) -> None:
        """See SharedTier."""
        value = await self.head_value(_name(record))
        if value is not None:
            try:
                head = decode_head(value, _name(record))
            except CorruptCopy:  # no version at all
                await self.remove_head(_name(record), value)
            else:
                if head.record.same_body(record):
                    # The body goes first: of a deletion that breaks off a head may stay, which is small and no hit.
                    await self.remove_body(head.body)
                    await self.remove_head(_name(record), value)
        self._used_nbytes -= self._ours.pop(_identity(record), 0)

    async def lookup(self, names: Sequence[Name]) -> list[Record | None]:
        """See SharedTier. One round trip to each server that is concerned, and a second one where it has something."""
        values = await self._ask([(key, (b"GET", key)) for key in map(self.head_key, names)])
        heads = [_head_or_none(value, name) for value, name in zip(values, names, strict=True)]
        bodies = [self.body_key(head.body) for head in heads if head is not None and head.pieces]
        counts = iter(await self._ask([(key, (b"HLEN", key)) for key in bodies]))
        return [
            head.record if head is not None and (not head.pieces or next(counts) == head.pieces) else None
            for head in heads
        ]

    # --- for uploads and readers --------------------------------------------------------------------------------------

    def head_key(self, name: Name) -> bytes:
        """Where the head of an object is."""
        return self._prefix + "head:{{}}{}/{}/{}".format(*name).encode()

    def body_key(self, body: bytes) -> bytes:
        """Where the body with this id is."""
        return self._prefix + b"body:" + body.hex().encode()

    async def head_value(self, name: Name, *, renew: bool = False) -> bytes | None:
        """The stored head, not looked at; None where there is none.

        renew: whether it is from now on that it stays for `ttl`
        """
        key = self.head_key(name)
        if renew and not self.read_only and self.ttl_ms is not None:
            value = await self.call(key, b"GETEX", key, b"PX", self.ttl_ms)
        else:
            value = await self.call(key, b"GET", key)
        return value if isinstance(value, bytes) else None

    async def fetch_head(self, record: Record) -> Head:
        """The head of the object that the record describes. Raises NotInTier, CorruptCopy."""
        value = await self.head_value(_name(record), renew=True)
        if value is None:
            raise NotInTier("redis does not hold the object, or not any more")
        head = decode_head(value, _name(record))
        if not head.record.same_body(record):
            raise NotInTier("redis holds another version of the object")
        return head

    async def set_head(self, name: Name, value: bytes) -> bool:
        """Make an object visible; False where its name has a head already."""
        key = self.head_key(name)
        expiry: tuple[Argument, ...] = () if self.ttl_ms is None else (b"PX", self.ttl_ms)
        return await self.call(key, b"SET", key, value, b"NX", *expiry) is not None

    async def remove_head(self, name: Name, value: bytes) -> None:
        """Delete a head, if it still is this one."""
        key = self.head_key(name)
        await self.call(key, b"EVAL", _DELETE_IF_EQUAL, 1, key, value)

    async def keep_body(self, head: Head) -> bool:
        """Let the body of a head stay for `ttl`; whether all its pieces are there."""
        if not head.pieces:
            return True
        key = self.body_key(head.body)

        async def exchange(wire: Wire) -> bool:
            if self.ttl_ms is None:
                wire.send(b"PERSIST", key)
            else:
                wire.send(b"PEXPIRE", key, self.ttl_ms)
            wire.send(b"HLEN", key)
            _, count = [checked(await wire.reply()) for _ in range(2)]
            return bool(count == head.pieces)

        return await self.run(key, exchange)

    async def remove_body(self, body: bytes) -> None:
        """Delete a body."""
        key = self.body_key(body)
        await self.call(key, b"UNLINK", key)

    async def call(self, key: bytes, *command: Argument) -> Any:
        """The answer to one command about `key`. Raises TierError."""

        async def exchange(wire: Wire) -> Any:
            wire.send(*command)
            return checked(await wire.reply())

        return await self.run(key, exchange)

    async def run(self, key: bytes, exchange: Callable[[Wire], Awaitable[T]]) -> T:
        """What `exchange` makes of a connection to the server of `key`.

        It is made again, from the beginning, where a cluster answers that another server has the key; not for any
        other error. Raises TierError.
        """
        route, pool, asking = self._route, None, False
        server = "its place"
        try:
            for _ in range(_MAX_HOPS):
                pool = pool or await route.locate(key)
                server = str(pool.address)
                try:
                    async with pool.connection() as wire:
                        wire.asking = asking
                        try:
                            return await exchange(wire)
                        finally:
                            wire.asking = False
                except exceptions.AskError as error:
                    asking = not isinstance(error, exceptions.MovedError)
                    if not asking:
                        route.forget(pool)
                    pool = route.at(Address(error.host or pool.address.host, error.port))
                except (*LOST, *MOVED_ON, asyncio.CancelledError):
                    route.forget(pool)
                    raise
        except FOREIGN as error:
            raise tier_error(error, server) from error
        raise TierError(f"the redis cluster sends from server to server, {_MAX_HOPS} times by now", transient=True)

    async def _ask(self, questions: Sequence[tuple[bytes, tuple[Argument, ...]]]) -> list[Reply | TierError]:
        """The answers to commands, each about one key; errors, and a server's absence, are values.

        Each server gets its commands in one go, a batch at a time. Raises TierError when there is no answer at all.
        """
        answers: list[Reply | TierError] = [None] * len(questions)
        left = list(range(len(questions)))
        for _ in range(_ROUNDS):
            servers: dict[Pool, list[int]] = {}
            for number in left:
                try:
                    servers.setdefault(await self._route.locate(questions[number][0]), []).append(number)
                except FOREIGN as error:
                    answers[number] = tier_error(error, "its place")
                except TierError as error:
                    answers[number] = error
            await asyncio.gather(
                *[self._ask_server(pool, questions, numbers, answers) for pool, numbers in servers.items()]
            )
            left = [number for number in left if isinstance(answers[number], exceptions.MovedError)]
            if not left:
                break
        for number, answer in enumerate(answers):
            if isinstance(answer, exceptions.AskError):
                key, command = questions[number]
                try:
                    answers[number] = await self.call(key, *command)
                except TierError as refused:
                    answers[number] = refused
        if answers and all(isinstance(answer, TierError) for answer in answers):
            assert isinstance(answers[0], TierError)
            raise answers[0]
        return answers

    async def _ask_server(
        self,
        pool: Pool,
        questions: Sequence[tuple[bytes, tuple[Argument, ...]]],
        numbers: Sequence[int],
        answers: list[Reply | TierError],
    ) -> None:
        answered = 0
        try:
            async with pool.connection() as wire:
                for begin in range(0, len(numbers), _BATCH):
                    batch = numbers[begin : begin + _BATCH]
                    for number in batch:
                        wire.send(*questions[number][1])
                    for number in batch:
                        answers[number] = await wire.reply()
                        answered += 1
                        if isinstance(answers[number], (exceptions.MovedError, *MOVED_ON)):
                            self._route.forget(pool)
        except FOREIGN as error:
            self._route.forget(pool)
            for number in numbers[answered:]:
                answers[number] = tier_error(error, str(pool.address))
        except asyncio.CancelledError:
            self._route.forget(pool)
            raise
        for number in numbers[:answered]:
            answer = answers[number]
            if isinstance(answer, exceptions.RedisError) and not isinstance(answer, exceptions.AskError):
                answers[number] = tier_error(answer, str(pool.address))

    @property
    def _route(self) -> Route:
        assert self._route_ is not None, "the tier is not started"
        return self._route_


def _name(record: Record) -> Name:
    return Name(record.tenant, record.bucket, record.key)


def _identity(record: Record) -> int:
    return hash((record.tenant, record.bucket, record.key, record.nbytes, record.crc64nvme))


def _head_or_none(value: object, name: Name) -> Head | None:
    if not isinstance(value, bytes):
        return None
    try:
        return decode_head(value, name)
    except CorruptCopy:
        return None


def _tls(config: RedisConfig) -> ssl.SSLContext:
    """Raises ConfigError. Reads files."""
    try:
        context = ssl.create_default_context()
        if config.tls_ca is not None:
            context.load_verify_locations(config.tls_ca)
        if config.tls_certificate is not None:
            context.load_cert_chain(config.tls_certificate, config.tls_key)
    except OSError as error:
        raise ConfigError(f"tls_ca, tls_certificate or tls_key cannot be used: {error.strerror or error}") from error
    return context
