"""The S3 API: one request in, one response out, whatever goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvgate.auth.authenticator import Authenticator
from kvgate.messages import Request, Response
from kvgate.s3.call import Call
from kvgate.s3.errors import error_response
from kvgate.s3.operations.base import Context
from kvgate.s3.routes import route
from kvgate.s3.target import parse_target

if TYPE_CHECKING:
    from kvgate.store.store import Store


class S3:
    """Answers S3 requests from a store, each for the tenant that its signature proves."""

    def __init__(self, store: Store, authenticator: Authenticator, region: str) -> None:
        self._store = store
        self._authenticator = authenticator
        self._region = region

    async def handle(self, request: Request, request_id: str) -> Response:
        """The response to a request, errors included; only cancellation is raised.

        The body of the request may be left unread when it is refused. The caller closes the response's body.
        """
        name = ""
        try:
            identity = self._authenticator.authenticate(request)
            call = Call(request, parse_target(request.raw_path, request.raw_query, request.bucket), identity)
            operation = route(call)
            name = operation.name
            response = await operation.run(Context(self._store, self._region, identity.tenant), call)
        except Exception as error:
            response = error_response(error, method=request.method, resource=request.raw_path, request_id=request_id)
        response.operation = name
        response.headers["x-amz-request-id"] = request_id
        return response
