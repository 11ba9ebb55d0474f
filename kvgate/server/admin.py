"""The operator's listener: /metrics, /healthz and /readyz."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from kvgate.metrics import Metrics


def admin_app(metrics: Metrics, collect: Callable[[], None], ready: Callable[[], bool]) -> web.Application:
    """The application of the admin port.

    collect: brings the gauges up to date before a scrape
    ready:   whether the gateway takes requests: not before it is open, and no more once it drains
    """

    async def get_metrics(_: web.Request) -> web.Response:
        collect()
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def get_healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def get_readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if ready() else web.Response(status=503, text="not ready\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", get_metrics), web.get("/healthz", get_healthz), web.get("/readyz", get_readyz)])
    return app
