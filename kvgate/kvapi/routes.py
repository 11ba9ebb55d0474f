"""The route table: from method and path to a call."""

from __future__ import annotations

from kvgate.errors import MethodNotAllowed, UnsupportedOperation
from kvgate.kvapi import explain, jobs, match, peer, prefetch, read, release, reserve, retention, session, stats, tenant
from kvgate.kvapi.call import Call
from kvgate.tiers.peer_records import OBJECT, RECORDS

DOCUMENT = ("GET", "/_kv/v1/openapi.yaml")
"""The one route that needs no signature."""

ROUTES: dict[tuple[str, str], Call] = {
    ("POST", "/_kv/v1/match"): match.call,
    ("POST", "/_kv/v1/read"): read.call,
    ("POST", "/_kv/v1/explain"): explain.call,
    ("POST", "/_kv/v1/release"): release.call,
    ("POST", "/_kv/v1/prefetch"): prefetch.call,
    ("POST", "/_kv/v1/jobs"): jobs.start,
    ("GET", "/_kv/v1/jobs"): jobs.list_,
    ("DELETE", "/_kv/v1/jobs"): jobs.cancel,
    ("POST", "/_kv/v1/retain"): retention.retain,
    ("GET", "/_kv/v1/retention"): retention.retention,
    ("POST", "/_kv/v1/session"): session.call,
    ("POST", "/_kv/v1/reserve"): reserve.reserve,
    ("PUT", "/_kv/v1/slice"): reserve.slice_,
    ("DELETE", "/_kv/v1/reserve"): reserve.abort,
    ("POST", RECORDS): peer.records,
    ("GET", OBJECT): peer.object_,
    ("GET", "/_kv/v1/stats"): stats.call,
    ("GET", "/_kv/v1/tenant"): tenant.call,
}


def route(method: str, path: str) -> Call:
    """The call that a request asks for. Raises UnsupportedOperation for an unknown path, MethodNotAllowed."""
    call = ROUTES.get((method, path))
    if call is not None:
        return call
    methods = sorted(known for known, of in (*ROUTES, DOCUMENT) if of == path)
    if methods:
        raise MethodNotAllowed(f"{path} takes {' or '.join(methods)}, not {method[:16]}")
    raise UnsupportedOperation(f"there is no call {path[:160]!r}; {DOCUMENT[1]} lists those that there are")
