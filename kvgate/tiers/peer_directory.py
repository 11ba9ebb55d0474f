"""Where gateways find each other: one sorted set in a Redis, of URLs by the moment until which they count as alive.

Every gateway enters itself again and again, with a moment by the clock of the Redis, so that nobody else's clock
matters; one that dies is out of the set as soon as that moment is over.
"""

from __future__ import annotations

import logging

from redis.asyncio import Redis
from redis.exceptions import RedisError

from kvgate.errors import ConfigError, TierAway
from kvgate.http.endpoint import parse_endpoint

logger = logging.getLogger(__name__)

MAX_PEERS = 1024
_MAX_URL_NBYTES = 512


class Directory:
    """The gateways of one key. Raises ConfigError for a URL that redis-py cannot read."""

    def __init__(self, url: str, key: str, ttl_s: float, mine: str | None) -> None:
        """
        ttl_s: how long after its last `beat` a gateway counts as alive
        mine:  the URL that this gateway enters; None only looks
        """
        try:
            self._redis = Redis.from_url(url, socket_timeout=ttl_s / 3, socket_connect_timeout=ttl_s / 3)
        except ValueError:
            raise ConfigError("directory: expected redis://, rediss:// or unix:// with a host or a path") from None
        self._key = key
        self._ttl_s = ttl_s
        self._mine = mine

    async def beat(self) -> list[str]:
        """Enter this gateway, and give the URLs of all others that are alive. Raises TierAway."""
        try:
            seconds, micros = await self._redis.time()
            now = seconds + micros / 1e6
            async with self._redis.pipeline(transaction=True) as pipe:
                if self._mine is not None:
                    pipe.zadd(self._key, {self._mine: now + self._ttl_s})
                pipe.zremrangebyscore(self._key, "-inf", now)
                pipe.zrange(self._key, 0, MAX_PEERS - 1)
                *_, members = await pipe.execute()
        except (RedisError, OSError) as error:
            raise TierAway(f"the directory of gateways does not answer: {type(error).__name__}") from error
        urls = [url for url in map(_url, members) if url]
        return [url for url in urls if url != self._mine]

    async def leave(self) -> None:
        """Take this gateway out, as far as that can be done, and close the connections."""
        try:
            if self._mine is not None:
                await self._redis.zrem(self._key, self._mine)
        except (RedisError, OSError):
            logger.debug("the directory was not reached to leave it; the entry ends by itself")
        finally:
            await self._redis.aclose()


def _url(member: bytes) -> str:
    """The URL of a gateway; empty for what is none."""
    if len(member) > _MAX_URL_NBYTES:
        return ""
    try:
        text = member.decode()
        return text if str(parse_endpoint(text)) == text else ""
    except (UnicodeDecodeError, ConfigError):
        return ""
