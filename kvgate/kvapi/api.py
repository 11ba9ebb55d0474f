"""The KV-aware calls: one request in, one response out, whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from importlib import resources
from typing import TYPE_CHECKING

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.cluster import Cluster
from kvgate.auth.identity import Identity
from kvgate.errors import AccessDenied, UnsupportedOperation
from kvgate.kvapi.body import read_body
from kvgate.kvapi.call import Call, Context, Local
from kvgate.kvapi.config import KVApiConfig
from kvgate.kvapi.encoding import Members, request_encoding, response_encoding
from kvgate.kvapi.errors import error_response
from kvgate.kvapi.fields import Fields, query_members
from kvgate.kvapi.routes import DOCUMENT, route
from kvgate.messages import OFF_LOOP_NBYTES, Request, Response

if TYPE_CHECKING:
    from kvgate.store.store import Store


class KVApi:
    """Answers the calls under /_kv/v1/ from a store, each for the tenant that its signature or token proves.

    Calls of other gateways are proved by the credential of the cluster, and by nothing else.
    """

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        config: KVApiConfig,
        local: Local,
        cluster: Cluster | None = None,
    ) -> None:
        self._local = local
        self._store = store
        self._authenticator = authenticator
        self._config = config
        self._cluster = cluster
        self._document = resources.files("kvgate.kvapi").joinpath("openapi.yaml").read_bytes()

    async def handle(self, request: Request, request_id: str) -> Response:
        """The response to a request, errors included; only cancellation is raised.

        The body of the request may be left unread when it is refused.
        """
        if (request.method, request.raw_path) == DOCUMENT:
            response = Response(200, {"Content-Type": "application/yaml"}, self._document, operation="Document")
        else:
            response = await self._answer(request, request_id)
        response.headers["x-amz-request-id"] = request_id
        return response

    async def _answer(self, request: Request, request_id: str) -> Response:
        encoding, operation = response_encoding(request.headers), ""
        try:
            call = route(request.method, request.raw_path)
            operation = call.name
            identity = self._authenticate(call, request)
            parameters = query_members(request.raw_query)
            if call.in_query:
                fields = Fields(parameters, call.fields)
            else:
                _check_empty(parameters)
                body = await read_body(request, identity.payload, self._config.max_body)
                fields = Fields(await self._members(request, body), call.fields)
            context = Context(
                self._store,
                self._config,
                identity.tenant,
                self._local,
                self._authenticator.sessions,
                identity.signed_by,
                request,
                identity.payload,
                self._cluster,
            )
            answer = call.run(context, fields)
            if isinstance(answer, Awaitable):
                answer = await answer
            if isinstance(answer, Response):
                response = answer
            else:
                response = Response(200, {"Content-Type": encoding.media_type}, encoding.pack(answer))
        except Exception as error:
            response = error_response(error, encoding, method=request.method, request_id=request_id)
        response.operation = operation
        return response

    def _authenticate(self, call: Call, request: Request) -> Identity:
        if not call.for_peers:
            identity = self._authenticator.authenticate(request)
            self._store.rates.requests.take(identity.tenant.name)
            return identity
        if self._cluster is None:
            raise AccessDenied("this gateway is in no cluster (see `cluster` in its configuration)")
        return self._cluster.authenticate(request)

    async def _members(self, request: Request, body: bytes) -> Members:
        if not body:
            return {}
        unpack = request_encoding(request.headers).unpack
        if len(body) > OFF_LOOP_NBYTES:
            return await asyncio.to_thread(unpack, body, self._config.max_hashes)
        return unpack(body, self._config.max_hashes)


def _check_empty(parameters: Members) -> None:
    """Nothing is silently ignored."""
    for name in parameters:
        raise UnsupportedOperation(f"the query parameter {name[:64]!r} is not offered")
