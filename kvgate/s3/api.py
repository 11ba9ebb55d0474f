"""The S3 API: one request in, one response out, whatever goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvgate.auth.authenticator import Authenticator
from kvgate.auth.claim import is_signed
from kvgate.auth.identity import UNSIGNED
from kvgate.auth.query_headers import with_query_headers
from kvgate.auth.tenants import Tenant, Tenants
from kvgate.errors import AccessDenied, NoSuchBucket, NoSuchKey
from kvgate.messages import Request, Response
from kvgate.s3.access import Access
from kvgate.s3.call import Call
from kvgate.s3.errors import error_response
from kvgate.s3.form_call import open_form
from kvgate.s3.operations.base import Context
from kvgate.s3.origins import Origins
from kvgate.s3.routes import route
from kvgate.s3.target import parse_target

if TYPE_CHECKING:
    from kvgate.store.store import Store


_LOOKING = ("GET", "HEAD")
"""The methods of what needs an object to be there, other than copies and deletions."""


class S3:
    """Answers S3 requests from a store: for the tenant that a signature or a token proves, or for anyone who may."""

    def __init__(
        self, store: Store, tenants: Tenants, authenticator: Authenticator, region: str, unsigned: Tenant | None = None
    ) -> None:
        """unsigned: whose buckets an unsigned request means that names no owner"""
        self._store = store
        self._tenants = tenants
        self._authenticator = authenticator
        self._region = region
        self._unsigned = unsigned
        self._origins = Origins(store, tenants, unsigned)

    async def handle(self, request: Request, request_id: str) -> Response:
        """The response to a request, errors included; only cancellation is raised.

        The body of the request may be left unread when it is refused. The caller closes the response's body.
        """
        answer = Answer()
        try:
            response = await self._answer(request, answer)
        except Exception as error:
            response = error_response(error, method=request.method, resource=request.raw_path, request_id=request_id)
        response.operation = answer.operation
        if answer.headers:
            response.headers.update(answer.headers)
        response.headers["x-amz-request-id"] = request_id
        return response

    async def _answer(self, request: Request, answer: Answer) -> Response:
        plain = with_query_headers(request)
        target = parse_target(plain.raw_path, plain.raw_query, plain.bucket)
        if request.method == "OPTIONS":
            answer.operation = "Preflight"
            return self._origins.preflight(request, target.bucket)
        call = Call(plain, target, UNSIGNED)
        operation = route(call)
        answer.operation = operation.name
        caller = None
        if operation.form:
            caller, call = await open_form(self._authenticator, call)
        elif is_signed(request):
            identity = self._authenticator.authenticate(request)
            caller = identity.tenant
            if identity.payload is not UNSIGNED:
                call = Call(plain, target, identity.payload)
        access = Access(self._store, self._tenants, caller, self._unsigned)
        owner, bucket = access.resolve(target.bucket)
        settings = access.settings(owner, bucket)
        if settings:
            answer.headers = self._origins.headers(request, settings)
        if caller is not None:
            self._store.rates.requests.take(caller.name)
        if bucket != target.bucket:
            call = call._replace(target=call.target._replace(bucket=bucket))
        expected = plain.headers.get("x-amz-expected-bucket-owner")
        if expected not in ("", owner.name):
            raise AccessDenied("the bucket is not of the owner that x-amz-expected-bucket-owner names")
        key = call.target.key
        if key and caller is owner and request.method in _LOOKING and self._store.may_find(owner.name, bucket, key):
            await self._store.find(owner.name, bucket, key)
        if bucket and (settings or caller is not owner):  # owners may do all that they have set nothing against
            access.check(owner, bucket, key, operation.policy_action, call.target.query)
        if caller is None:  # who shares with everyone pays for everyone; what is refused costs an owner nothing
            self._store.rates.requests.take(owner.name)
        if key and caller is not owner and request.method in _LOOKING and self._store.may_find(owner.name, bucket, key):
            await self._store.find(owner.name, bucket, key)  # for those who may see what it finds
        try:
            return await operation.run(Context(self._store, self._region, owner, access, settings), call)
        except (NoSuchBucket, NoSuchKey) as error:
            raise access.conceal(owner, bucket, call.key, error) from error


@dataclass(slots=True)
class Answer:
    """What is known of an answer before there is one, as far as a request has got.

    headers: which it has whatever becomes of the request
    """

    operation: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
