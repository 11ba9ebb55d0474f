"""Continuation tokens: where a listing goes on, opaque to the caller and checked when they come back."""

from __future__ import annotations

import base64
import binascii

from kvgate.errors import InvalidArgument

_VERSION = b"1:"
_MAX_CHARS = 2048


def encode_token(after: str) -> str:
    """The token to go on after a key or prefix with."""
    return base64.urlsafe_b64encode(_VERSION + after.encode()).decode("ascii").rstrip("=")


def decode_token(token: str) -> str:
    """The key or prefix that a token goes on after. Raises InvalidArgument."""
    if len(token) <= _MAX_CHARS and token.isascii():
        try:
            decoded = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            if decoded.startswith(_VERSION):
                return decoded[len(_VERSION) :].decode()
        except (binascii.Error, ValueError):
            pass
    raise InvalidArgument("the continuation token is not one that this gateway gave")
