"""What an operation is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from kvgate.auth.tenants import Tenant
from kvgate.messages import Response
from kvgate.s3.access import Access
from kvgate.s3.call import Call
from kvgate.s3.versions import check_version

if TYPE_CHECKING:
    from kvgate.store.store import Store

Input = TypeVar("Input")


class Context(NamedTuple):
    """What an operation works on, and for whom.

    tenant: the owner of the bucket that is addressed, or the caller where none is
    access: what the caller may do with this and every other bucket
    settings: what its owner had set for the bucket when the request came
    """

    store: Store
    region: str
    tenant: Tenant
    access: Access
    settings: Mapping[str, str]

    @property
    def caller(self) -> str | None:
        """The tenant who asks; None when the request is not signed."""
        return self.access.caller.name if self.access.caller else None

    @property
    def payer(self) -> str:
        """The tenant whose rates bound the request: who asks, or the owner where the request is not signed."""
        return self.access.caller.name if self.access.caller else self.tenant.name


@dataclass(frozen=True, slots=True)
class Operation(Generic[Input]):
    """One S3 operation.

    parse:      a call's typed input; raises InvalidRequest or UnsupportedOperation
    carry_out:  raises any domain error
    action:     what a caller needs to be allowed, as bucket policies name it; the same as `name` unless given
    parameters: the query parameters that it reads; a request with another one is refused
    headers:    those x-amz-* headers that it reads and that are refused elsewhere
    form:       whether its body is a POST form, which says by itself who calls; a call of it has been opened
    """

    name: str
    parse: Callable[[Call], Input]
    carry_out: Callable[[Context, Input], Awaitable[Response]]
    parameters: frozenset[str] = frozenset()
    headers: frozenset[str] = frozenset()
    action: str = ""
    form: bool = False
    policy_action: str = field(init=False)
    """`action`, as bucket policies write it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy_action", f"s3:{self.action or self.name}")

    def run(self, context: Context, call: Call) -> Awaitable[Response]:
        """Parse, to carry out. Raises NoSuchVersion where another version is asked for than the one there is."""
        if call.query:
            check_version(call.query)
        return self.carry_out(context, self.parse(call))


@dataclass(frozen=True, slots=True)
class BucketInput:
    """A request on a bucket that says nothing else."""

    bucket: str

    @classmethod
    def parse(cls, call: Call) -> BucketInput:
        return cls(call.bucket)
