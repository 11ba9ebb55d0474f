"""The session token of a client: got when it is first needed, replaced before its end, given up when it is refused.

While there is none, calls are signed. Thread-safe without a lock: at worst two threads get one each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from kvgate.client.values import Session
from kvgate.errors import GatewayError

logger = logging.getLogger(__name__)

_RENEW_AT = 0.7
"""The part of its time after which a token is replaced."""

_LEFT_OUT = 0.9
"""The part of its time after which it is not used any more: what is sent now has to arrive."""

_AGAIN_S = 5.0
_REFUSED_S = 60.0


class SessionToken:
    """What a client knows of its token."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usable = "", 0.0  # the token, and until when
        self._due = 0.0

    def get(self) -> str:
        """The token; empty when there is none that is good now."""
        token, until = self._usable
        return token if self._clock() < until else ""

    def begin(self) -> float | None:
        """The time, when it is time for the caller to get a token. Nobody else is told so for the next seconds."""
        now = self._clock()
        if now < self._due:
            return None
        self._due = now + _AGAIN_S
        return now

    def adopt(self, session: Session, began: float) -> None:
        """Use a token that was asked for at `began`."""
        self._usable = session.token, began + _LEFT_OUT * session.expires_s
        self._due = began + _RENEW_AT * session.expires_s

    def refused(self, error: GatewayError) -> None:
        """Note that the gateway gives none: it is too old, or tokens are off there. It is asked again in a while."""
        logger.debug("no session token: %s", error)
        self._due = self._clock() + _REFUSED_S

    def drop(self, token: str) -> None:
        """Use a token no more, which the gateway has refused, and soon get another."""
        if self._usable[0] == token:
            self._usable = "", 0.0
            self._due = min(self._due, self._clock() + _AGAIN_S)
