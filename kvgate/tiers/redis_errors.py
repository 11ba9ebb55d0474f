"""What redis-py, the system and a Redis server say, in the words of a tier. Passwords never get into a message."""

from __future__ import annotations

import errno
import ssl

from redis import exceptions

from kvgate.errors import TierAway, TierBusy, TierError, TierFull

LOST = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse, OSError)
"""After one of these the server may be gone, and so are its other connections, probably."""

MOVED_ON = (exceptions.ReadOnlyError, exceptions.ClusterDownError)
"""The server works, but is not the one to ask any more."""

FOREIGN = (exceptions.RedisError, OSError)

_OUT_OF_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_MAX_SAID = 200


def tier_error(error: Exception, server: str) -> TierError:
    """The error to raise for one of FOREIGN that came from `server`."""
    if isinstance(error, OSError) and error.errno in _OUT_OF_MEANS:
        return TierBusy(f"redis at {server} cannot be asked now: {error.strerror}")
    if isinstance(error, exceptions.OutOfMemoryError):
        return TierFull(f"redis at {server} is full: its maxmemory is reached and its policy evicts nothing")
    if isinstance(error, exceptions.AuthenticationError):
        return TierError(f"redis at {server} refuses the user name or the password")
    if isinstance(error, exceptions.NoPermissionError):
        return TierError(f"redis at {server} refuses a command: {_said(error)}; docs/tiers.md lists what it needs")
    if isinstance(error, (*LOST, *MOVED_ON)):
        return TierAway(f"redis at {server} is not reached: {_said(error)}")
    transient = isinstance(error, exceptions.TryAgainError | exceptions.AskError) or _said(error).startswith("BUSY")
    return TierError(f"redis at {server} refuses a command: {_said(error)}", transient=transient)


def _said(error: Exception) -> str:
    """The error's own words, without what servers quote from the command: that may be a key, or a password."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer within connect_timeout"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)[:_MAX_SAID] or type(error).__name__
    return str(error).split(", with args")[0][:_MAX_SAID] or type(error).__name__
