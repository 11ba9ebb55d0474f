"""How fast each tenant may ask, read and write: token buckets that may go into debt.

Invariants
1. A request is let in while its bucket holds at least one token (a request, or a byte), and then takes all that it
   costs. So an object of any size passes, and is paid for before the next one does.
2. What is let in within any `t` seconds is at most `burst + rate * t` and what one request costs, and what is owed for
   costs that were known only afterwards.
3. What is refused takes nothing.

Synchronous and pure but for the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from kvgate.auth.tenants import Tenant
from kvgate.errors import RateLimited
from kvgate.store.refusals import Reason, Refusals

_A_TOKEN = 0.99
"""What counts as one: the sums of large debts are not exact, and who has waited as told is let in."""


class TokenBucket:
    """Tokens that come at `rate` a second, up to `burst` of them. Negative while something is owed."""

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)  # less than a token would never let anything in
        self._level = self.burst
        self._at = now

    def wait_s(self, now: float) -> float:
        """How long until there is a token; 0 when there is one."""
        self._level = min(self.burst, self._level + self.rate * (now - self._at))
        self._at = now
        return 0.0 if self._level >= _A_TOKEN else (1.0 - self._level) / self.rate

    def take(self, tokens: float) -> None:
        """Take tokens, also those that are not there; a negative number gives some back."""
        self._level = min(self.burst, self._level - tokens)


class RateLimit:
    """One kind of limit, of every tenant that has it.

    reason: by which its refusals are counted
    """

    def __init__(self, reason: Reason, words: str, refusals: Refusals, clock: Callable[[], float]) -> None:
        self.reason, self._words = reason, words
        self._refusals = refusals
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def set(self, tenant: str, rate: float | None, burst_s: float) -> None:
        """Limit a tenant; None does not."""
        if rate is not None:
            self._buckets[tenant] = TokenBucket(rate, rate * burst_s, self._clock())

    def rate(self, tenant: str) -> float | None:
        """How many a second a tenant may have; None without a limit."""
        bucket = self._buckets.get(tenant)
        return None if bucket is None else bucket.rate

    def take(self, tenant: str, amount: int = 1) -> None:
        """Let something in that costs `amount`, as far as is known. Raises RateLimited, with nothing taken."""
        bucket = self._buckets.get(tenant)
        if bucket is None:
            return
        wait_s = bucket.wait_s(self._clock())
        if wait_s > 0:
            self._refusals.note(tenant, self.reason)
            seconds = max(1, math.ceil(wait_s))
            raise RateLimited(
                f"the tenant is over its rate of {bucket.rate:g} {self._words} a second; try again in {seconds} s",
                seconds,
            )
        bucket.take(amount)

    def owe(self, tenant: str, amount: int) -> None:
        """Take what something has cost that was let in. A negative amount is given back."""
        bucket = self._buckets.get(tenant)
        if bucket is not None:
            bucket.take(amount)


class Rates:
    """The limits of every tenant. All methods run on the event loop."""

    def __init__(self, refusals: Refusals, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests = RateLimit("requests", "requests", refusals, clock)
        self.read = RateLimit("read_bytes", "bytes read", refusals, clock)
        self.write = RateLimit("write_bytes", "bytes written", refusals, clock)
        self.uploads_limited: set[str] = set()
        """The tenants with a rate that an upload is held against."""

    def upload(self, tenant: str, take_quota: Callable[[int], None]) -> Callable[[int], None]:
        """`take_quota` for one upload, whose bytes count at the tenant's rate too.

        The first call is the upload's beginning, with the bytes that are known then, and may raise RateLimited; what
        later calls add is owed. What the quota refuses costs nothing.
        """
        if self.write.rate(tenant) is None:
            return take_quota
        begun = False

        def take(nbytes: int) -> None:
            nonlocal begun
            if begun:
                self.write.owe(tenant, nbytes)
            else:
                self.write.take(tenant, nbytes)
            try:
                take_quota(nbytes)
            except BaseException:
                self.write.owe(tenant, -nbytes)
                raise
            begun = True

        return take

    def of(self, tenant: str) -> dict[str, float | None]:
        """How many requests, bytes read and bytes written a tenant may have a second; None without a limit."""
        return {limit.reason: limit.rate(tenant) for limit in (self.requests, self.read, self.write)}

    def load(self, tenants: Iterable[Tenant]) -> None:
        """Take the limits of the configuration."""
        for tenant in tenants:
            rate = tenant.rate
            for limit, each in ((self.requests, rate.requests), (self.read, rate.read_bytes)):
                limit.set(tenant.name, each, rate.burst)
            self.write.set(tenant.name, rate.write_bytes, rate.burst)
            if rate.requests is not None or rate.write_bytes is not None:
                self.uploads_limited.add(tenant.name)
