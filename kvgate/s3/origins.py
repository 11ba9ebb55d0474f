"""Requests of browser pages from other origins, by the CORS rules of the bucket that they are for.

A preflight request carries no signature. The bucket's owner is the one that its name or the presigned query names; all
that the answer tells is what the owner's rules let pages of that origin do.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvgate.auth.claim import claimed_access_key
from kvgate.auth.tenants import Tenant, Tenants
from kvgate.errors import AccessDenied, InvalidRequest, UnknownAccessKey
from kvgate.messages import Request, Response
from kvgate.s3.access import Access
from kvgate.s3.cors import SETTING, VARY, CorsRule, find_rule, parse_cors, preflight_headers, response_headers

if TYPE_CHECKING:
    from kvgate.store.store import Store

_NO_RULE = "no CORS rule of the bucket lets pages of this origin send this request"


class Origins:
    """Answers preflight requests, and says what other answers carry for pages of other origins."""

    def __init__(self, store: Store, tenants: Tenants, unsigned: Tenant | None) -> None:
        """unsigned: see Access"""
        self._store = store
        self._tenants = tenants
        self._unsigned = unsigned

    def preflight(self, request: Request, bucket: str) -> Response:
        """The answer to an OPTIONS request. Raises InvalidRequest, or AccessDenied when no rule lets it pass."""
        headers = request.headers
        origin, method = headers.get("origin"), headers.get("access-control-request-method")
        if not origin or not method:
            raise InvalidRequest("a preflight request has an Origin and an Access-Control-Request-Method")
        names = [name.strip() for name in ",".join(headers.getall("access-control-request-headers")).split(",")]
        wanted = [name for name in names if name]
        try:
            caller, _ = self._tenants.credential(claimed_access_key(request))
        except UnknownAccessKey:
            caller = None
        access = Access(self._store, self._tenants, caller, self._unsigned)
        settings = access.settings(*access.resolve(bucket))
        rule = find_rule(_rules(settings), origin, method, wanted)
        if rule is None:
            raise AccessDenied(_NO_RULE)
        return Response(200, preflight_headers(rule, origin, method, wanted))

    def headers(self, request: Request, settings: Mapping[str, str]) -> Mapping[str, str]:
        """What the answer to a page's request carries, so that the browser lets the page see it.

        settings: of the bucket that the request is for
        """
        rules, origin = _rules(settings), request.headers.get("origin")
        rule = find_rule(rules, origin, request.method) if rules and origin else None
        if rule is None:
            return {"Vary": VARY} if rules else {}
        return response_headers(rule, origin)


def _rules(settings: Mapping[str, str]) -> tuple[CorsRule, ...]:
    document = settings.get(SETTING)
    return _parsed(document) if document else ()


@functools.lru_cache(maxsize=1024)
def _parsed(document: str) -> tuple[CorsRule, ...]:
    return parse_cors(document.encode())
