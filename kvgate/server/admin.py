"""The operator's listener: /metrics, /healthz, /readyz, /tenants, /scrub and /record.

It asks for no credential. What changes something takes a body of JSON, which no page of another site can make a browser
send unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from kvgate.metrics import Metrics
from kvgate.store.recorder import Recorder
from kvgate.store.scrub import Scrubber
from kvgate.store.values import TenantStats
from kvgate.tiers.circuit import Health

_MAX_RECORDING_S = 7 * 86400


def admin_app(
    metrics: Metrics,
    collect: Callable[[], None],
    ready: Callable[[], bool],
    healths: Callable[[], Mapping[str, Health | None]],
    scrubber: Scrubber,
    tenants: Callable[[], Mapping[str, TenantStats]],
    recorder: Recorder,
) -> web.Application:
    """The application of the admin port.

    collect: brings the gauges up to date before a scrape
    ready:   whether the gateway takes requests: not before it is open, and no more once it drains
    tenants: what each has and may have, by its name
    healths: how the tiers are, the fastest first; None for one of the gateway's own
    """

    async def get_metrics(_: web.Request) -> web.Response:
        collect()
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def get_healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def get_readyz(_: web.Request) -> web.Response:
        """200 also while a shared tier is away: the gateway serves from the others, and says so here."""
        tiers = {name: _described(health) for name, health in healths().items()}
        return web.json_response({"ready": ready(), "tiers": tiers}, status=200 if ready() else 503)

    async def get_tenants(_: web.Request) -> web.Response:
        return web.json_response({"tenants": {name: asdict(stats) for name, stats in tenants().items()}})

    async def get_scrub(_: web.Request) -> web.Response:
        return web.json_response(scrubber.report())

    async def post_scrub(request: web.Request) -> web.Response:
        """202 when a pass begins; 409, with the same report, when one goes on or the scrubber is off."""
        if request.content_type != "application/json":
            return web.Response(status=415, text="send a body of the type application/json, such as {}\n")
        begins = scrubber.begin_now()
        return web.json_response(scrubber.report(), status=202 if begins else 409)

    async def post_record(request: web.Request) -> web.StreamResponse:
        """What clients ask for during the next `seconds`, in JSON lines; 409 while another recording goes on."""
        if request.content_type != "application/json":
            return web.Response(status=415, text='send a body of the type application/json, such as {"seconds": 60}\n')
        try:
            seconds = float((await request.json())["seconds"])
        except (ValueError, KeyError, TypeError):
            seconds = 0.0
        if not 0 < seconds <= _MAX_RECORDING_S:
            return web.Response(status=400, text=f"seconds: expected a number over 0 and up to {_MAX_RECORDING_S}\n")
        if not recorder.begin():
            return web.Response(status=409, text="there is a recording already\n")
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            async for lines in recorder.lines(seconds):
                await response.write(lines)  # fails once nobody reads any more
        finally:
            recorder.end()
        return response

    app = web.Application()
    app.add_routes(
        [
            web.get("/metrics", get_metrics),
            web.get("/healthz", get_healthz),
            web.get("/readyz", get_readyz),
            web.get("/tenants", get_tenants),
            web.get("/scrub", get_scrub),
            web.post("/scrub", post_scrub),
            web.post("/record", post_record),
        ]
    )
    return app


def _described(health: Health | None) -> dict[str, object]:
    if health is None:
        return {"state": "ready"}
    state = "ready" if health.state == "closed" else "away"
    described: dict[str, object] = {"state": state, "circuit": health.state, "for_s": round(health.for_s, 1)}
    return described | ({"last_error": health.error} if health.error else {})
