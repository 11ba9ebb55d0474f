"""What an operation is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from kvgate.auth.tenants import Tenant
from kvgate.messages import Response
from kvgate.s3.call import Call

if TYPE_CHECKING:
    from kvgate.store.store import Store

Input = TypeVar("Input")


@dataclass(frozen=True, slots=True)
class Context:
    """What an operation works on, and for whom."""

    store: Store
    region: str
    tenant: Tenant


@dataclass(frozen=True, slots=True)
class Operation(Generic[Input]):
    """One S3 operation.

    parse:      a call's typed input; raises InvalidRequest or UnsupportedOperation
    carry_out:  raises any domain error
    parameters: the query parameters that it reads; a request with another one is refused
    """

    name: str
    parse: Callable[[Call], Input]
    carry_out: Callable[[Context, Input], Awaitable[Response]]
    parameters: frozenset[str] = frozenset()

    async def run(self, context: Context, call: Call) -> Response:
        """Parse, then carry out."""
        return await self.carry_out(context, self.parse(call))
