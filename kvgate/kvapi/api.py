"""The KV-aware calls: one request in, one response out, whatever goes wrong."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import TYPE_CHECKING

from kvgate.auth.authenticator import Authenticator
from kvgate.errors import UnsupportedOperation
from kvgate.kvapi.body import read_body
from kvgate.kvapi.call import Context, Local
from kvgate.kvapi.config import KVApiConfig
from kvgate.kvapi.encoding import Members, request_encoding, response_encoding
from kvgate.kvapi.errors import error_response
from kvgate.kvapi.fields import Fields
from kvgate.kvapi.routes import DOCUMENT, route
from kvgate.messages import OFF_LOOP_NBYTES, Request, Response

if TYPE_CHECKING:
    from kvgate.store.store import Store


class KVApi:
    """Answers the calls under /_kv/v1/ from a store, each for the tenant that its signature or token proves."""

    def __init__(self, store: Store, authenticator: Authenticator, config: KVApiConfig, local: Local) -> None:
        self._local = local
        self._store = store
        self._authenticator = authenticator
        self._config = config
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
            identity = self._authenticator.authenticate(request)
            _check_query(request.raw_query)
            body = await read_body(request, identity.payload, self._config.max_body)
            fields = Fields(await self._members(request, body), call.fields)
            sessions = self._authenticator.sessions
            context = Context(self._store, self._config, identity.tenant, self._local, sessions, identity.signed_by)
            members = call.run(context, fields)
            response = Response(200, {"Content-Type": encoding.media_type}, encoding.pack(members))
        except Exception as error:
            response = error_response(error, encoding, method=request.method, request_id=request_id)
        response.operation = operation
        return response

    async def _members(self, request: Request, body: bytes) -> Members:
        if not body:
            return {}
        unpack = request_encoding(request.headers).unpack
        if len(body) > OFF_LOOP_NBYTES:
            return await asyncio.to_thread(unpack, body, self._config.max_hashes)
        return unpack(body, self._config.max_hashes)


def _check_query(raw_query: str) -> None:
    """Nothing is silently ignored: only what presigning adds may stand in the query."""
    for parameter in raw_query.split("&"):
        if parameter and not parameter.startswith("X-Amz-"):
            raise UnsupportedOperation(f"the query parameter {parameter.partition('=')[0][:64]!r} is not offered")
