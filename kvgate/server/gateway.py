"""The composition root: a running gateway from its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from aiohttp import web

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.cluster import Cluster
from kvgate.auth.sigv4 import Credential
from kvgate.auth.tenants import Tenants
from kvgate.errors import ConfigError, KVGateError
from kvgate.kvapi.api import KVApi
from kvgate.kvapi.call import Local
from kvgate.memory.digest import NATIVE_MEND
from kvgate.memory.handoff import BOOT_ID_NBYTES
from kvgate.memory.threads import started_threads
from kvgate.messages import Buffers, Request, Response
from kvgate.metrics import LATENCY_BUCKETS_S, Metrics
from kvgate.s3.api import S3
from kvgate.s3.errors import error_response
from kvgate.s3.target import host_bucket
from kvgate.server.admin import admin_app
from kvgate.server.config import GatewayConfig, ListenConfig
from kvgate.server.front import Front
from kvgate.server.http1.front import Listener, PlainFront
from kvgate.server.listening import BACKLOG, listen_tcp, listening_unix
from kvgate.server.plane_board import PlaneBoard
from kvgate.server.plane_puts import PlanePuts
from kvgate.server.shm.listener import EngineListener
from kvgate.store.store import open_store
from kvgate.store.values import TenantStats
from kvgate.tiers.circuit import Health
from kvgate.tiers.disk import DiskTier
from kvgate.tiers.guarded import Guarded, guarded
from kvgate.tiers.host import HostTier
from kvgate.tiers.peer import PeerTier

try:
    from kvgate import native
    from kvgate.auth.native_credentials import native_credentials
except ImportError:  # not built: Python answers everything
    native = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_OTHER_FILES = 512
"""Files that are open besides connections: those of objects on disk, above all."""

_THREADS = 8
"""For what takes long in a request and needs no tier: digests of signed bodies, large documents."""

_KVAPI_PREFIX = "/_kv/"


@contextlib.asynccontextmanager
async def running(config: GatewayConfig) -> AsyncIterator[None]:
    """A gateway that takes requests inside the context.

    Leaving it drains: no new connections, requests in flight go on for at most `listen.drain_timeout`, and what is only
    in memory is written to the lower tiers. Raises ConfigError for an address that cannot be had, TierError.
    """
    if native is None:
        logger.warning("kvgate.native was not built: all works, but slower; %s", NATIVE_MEND)
    metrics, tenants = Metrics(), Tenants(config.tenants)
    configured = config.tier_options()
    memory, *made = [each.make() for each in configured]
    assert isinstance(memory, HostTier)
    for tier in made:
        if isinstance(tier, PeerTier) and config.cluster is not None:
            tier.join(Credential(config.cluster.access_key, str(config.cluster.secret_key)))
    lower = [
        guarded(tier, each.rules, metrics) if tier.shared else tier
        for tier, each in zip(made, configured[1:], strict=True)
    ]
    shared = [tier for tier in lower if isinstance(tier, Guarded)]
    catalog = next((_catalog_path(tier) for tier in lower if isinstance(tier, DiskTier)), None)
    listen = config.listen
    authenticator = Authenticator(
        tenants, time.time, listen.max_skew, sigv2=listen.sigv2, session_ttl_s=listen.session_ttl
    )
    tls = _tls(listen)
    domains = sorted(listen.domains, key=len, reverse=True)
    async with contextlib.AsyncExitStack() as stack:
        listener, *bound_listeners, admin_listener = [
            stack.enter_context(listen_tcp(listen.host, port))
            for port in (listen.port, *[bound.port for bound in config.listeners], listen.admin_port)
        ]
        unix_listeners = [
            stack.enter_context(listening_unix(path, "listen.unix_socket")) for path in [listen.unix_socket] if path
        ]
        store = await stack.enter_async_context(
            open_store(
                memory,
                lower,
                tenants,
                config=config.store,
                metrics=metrics,
                catalog=catalog,
                rules={each.name: each.rules for each in configured},
            )
        )
        unsigned = config.unsigned_tenant or (next(iter(config.tenants)) if len(config.tenants) == 1 else "")
        s3 = S3(store, tenants, authenticator, listen.region, tenants.get(unsigned))
        boot_id = secrets.token_bytes(BOOT_ID_NBYTES)
        collectors = [store.collect, *[tier.collect for tier in shared]]
        if listen.shm_socket:
            shm = EngineListener(
                stack.enter_context(
                    listening_unix(
                        listen.shm_socket, "listen.shm_socket", socket.SOCK_SEQPACKET, int(listen.shm_mode, 8)
                    )
                ),
                store=store,
                arena=memory.arena,
                authenticator=authenticator,
                tenants=tenants,
                metrics=metrics,
                boot_id=boot_id,
                lease_s=listen.shm_lease,
            )
            await stack.enter_async_context(shm.running())
            collectors.append(shm.collect)
        cluster = Cluster(config.cluster, tenants, time.time, listen.max_skew) if config.cluster is not None else None
        kvapi = KVApi(store, authenticator, config.kvapi, _local(listen, boot_id), cluster)

        buffers = Buffers(listen.buffered_bodies)

        async def handle(request: Request, request_id: str) -> Response:
            request.buffers = buffers
            if domains and not request.bucket:
                request.bucket = host_bucket(request.headers.get("host"), domains)
            api = kvapi if request.raw_path.startswith(_KVAPI_PREFIX) and not request.bucket else s3
            return await api.handle(request, request_id)

        fallbacks = [
            Front(handle, _refuse, listen, metrics, exact_ranges=listen.exact_ranges),
            *[
                Front(handle, _refuse, listen, metrics, bucket=bound.bucket, exact_ranges=bound.exact_ranges)
                for bound in config.listeners
            ],
        ]
        draining = asyncio.Event()

        def collect() -> None:
            for each in collectors:
                each()

        def healths() -> dict[str, Health | None]:
            return {tier.name: tier.health if isinstance(tier, Guarded) else None for tier in (memory, *lower)}

        def stats() -> dict[str, TenantStats]:
            return {tenant.name: store.stats(tenant) for tenant in tenants}

        app = admin_app(metrics, collect, lambda: not draining.is_set(), healths, store.scrubber, stats, store.recorder)
        await _run(stack, web.AppRunner(app, access_log=None), admin_listener)
        plane, puts = _plane(config, tenants, domains), None
        if plane is not None:
            puts = PlanePuts(plane, store, tenants, metrics, listen.body_timeout)
            stack.push_async_callback(puts.close)
            board = PlaneBoard(plane, tenants, metrics, memory.name)
            stack.enter_context(board.running(store.published))
            collectors.append(board.collect)
        plain = PlainFront(handle, listen, metrics, plane, store.published.settle, puts)
        stack.callback(plain.close)
        collectors.append(plain.collect)
        for each in unix_listeners:
            plain.listen(Listener(each, fallbacks[0]))
            logger.info("kvgate listens on %s", each.getsockname())
        sites = []
        for fallback, each in zip(fallbacks, [listener, *bound_listeners], strict=True):
            if tls is None:
                stack.push_async_callback(fallback.shutdown, 0)
                plain.listen(Listener(each, fallback, fallback.bucket, fallback.exact_ranges))
            else:
                sites.append(await _run(stack, web.ServerRunner(fallback), each, tls))
            where = f", bound to {fallback.bucket}" if fallback.bucket else ""
            logger.info("kvgate listens on %s:%d%s", *each.getsockname()[:2], where)
        stack.push_async_callback(_drain, [plain, *fallbacks], listen.drain_timeout)
        stack.callback(plain.stop_listening)
        for site in sites:
            stack.push_async_callback(site.stop)
        stack.callback(store.recorder.stop)
        stack.callback(draining.set)
        yield


async def serve(config: GatewayConfig) -> None:
    """Run a gateway until SIGTERM or SIGINT, then drain it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _raise_open_files(config.listen.max_connections)
    loop.set_default_executor(started_threads(_THREADS, "kvgate-work"))
    async with running(config):
        await stop.wait()
        logger.info("kvgate drains")
    logger.info("kvgate has stopped")


def _raise_open_files(connections: int) -> None:
    """Let this process have as many open files as it may; the default of many systems is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < connections + _OTHER_FILES:
        logger.warning(
            "the limit of open files is %d: too few for listen.max_connections = %d; raise it with `ulimit -n`",
            *(hard, connections),
        )


async def _run(
    stack: contextlib.AsyncExitStack, runner: web.BaseRunner, listener: socket.socket, tls: ssl.SSLContext | None = None
) -> web.SockSite:
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    site = web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=tls)
    await site.start()
    return site


async def _drain(fronts: Sequence[Front | PlainFront], timeout_s: float) -> None:
    await asyncio.gather(*[front.drain(timeout_s) for front in fronts])


def _plane(config: GatewayConfig, tenants: Tenants, domains: Sequence[str]) -> native.Plane | None:
    """The threads that answer for hot objects; None where there are none to be, or the extension was not built."""
    listen = config.listen
    if native is None or not config.store.published:
        return None
    return native.Plane(
        native_credentials(tenants, max_skew_s=listen.max_skew, session_ttl_s=listen.session_ttl),
        threads=listen.movers,
        domains=domains,
        max_header=listen.max_header,
        idle_timeout_s=listen.idle_timeout,
        header_timeout_s=listen.header_timeout,
        body_timeout_s=listen.body_timeout,
        min_rate=listen.min_rate,
        latency_buckets_s=LATENCY_BUCKETS_S,
    )


def _tls(config: ListenConfig) -> ssl.SSLContext | None:
    if config.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"listen.tls_certificate: {config.tls_certificate} and {config.tls_key} cannot be used ({error})"
        ) from error
    return context


def _refuse(error: KVGateError, request_id: str) -> Response:
    return error_response(error, method="GET", resource="", request_id=request_id)


def _local(config: ListenConfig, boot_id: bytes) -> Local:
    shm, unix = (os.path.abspath(path) if path else "" for path in (config.shm_socket, config.unix_socket))
    return Local(boot_id, shm, unix)


def _catalog_path(tier: DiskTier) -> Path:
    return tier.folder / "buckets.json"
