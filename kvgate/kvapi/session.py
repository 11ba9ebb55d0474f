"""POST /_kv/v1/session: a token that may be sent for a while instead of signing each request."""

from __future__ import annotations

from kvgate.auth.session import DEFAULT_TTL_S
from kvgate.errors import AccessDenied
from kvgate.kvapi.call import Call, Context
from kvgate.kvapi.encoding import Members
from kvgate.kvapi.fields import Fields


def _session(context: Context, fields: Fields) -> Members:
    """{ttl_s?} → {token, expires, expires_s}. Raises AccessDenied unless the request itself is signed in its headers.

    A token that could make another would have no end, and so would a URL that was presigned once.
    """
    ttl_s = fields.seconds("ttl_s", DEFAULT_TTL_S)
    if not context.signed_by:
        raise AccessDenied("a session is given for a request that Signature V4 signs in its headers only")
    session = context.sessions.issue(context.signed_by, ttl_s)
    return {"token": session.token, "expires": session.expires, "expires_s": session.ttl_s}


call = Call("Session", ("ttl_s",), _session)
