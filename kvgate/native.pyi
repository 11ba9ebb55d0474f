"""What Python is too slow for: a shared library, built of csrc/native where there is a C compiler at installation.

Who imports this does the same without it, slower.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict, TypeVar, final

from typing_extensions import Buffer

T = TypeVar("T")

class _Leased(Protocol):
    leases: int

CRC64NVME_PATHS: tuple[str, ...]
"""The ways that this processor has to take a crc64nvme, the fastest, which is taken, first."""

def crc64nvme(view: Buffer, value: int = 0, path: int = 0, /) -> int:
    """The crc64nvme of the bytes that `value` is of, and those of `view` behind them.

    path: which of CRC64NVME_PATHS to take
    """

def combine_crc64nvme(first: int, second: int, second_nbytes: int, /) -> int:
    """The crc64nvme of two runs of bytes, one behind the other, from their own."""

def verify_blocks(views: Iterable[Buffer], start: int, stop: int, nbytes: int, blocks: Sequence[int], /) -> bool:
    """See kvgate.memory.digest.verify_blocks. Reads no further than the first block that is not what it was."""

@final
class BlockDigest:
    """See kvgate.memory.digest.BlockDigest. Raises RuntimeError in a second thread that adds bytes at the same time."""

    @property
    def nbytes(self) -> int: ...
    @property
    def blocks(self) -> array[int]: ...
    @property
    def value(self) -> int: ...
    def update(self, view: Buffer, /) -> None: ...
    def __call__(self, view: Buffer, /) -> None: ...
    def receive(self, sock: object, views: Sequence[Buffer], most_nbytes: int, /) -> tuple[int, int]:
        """Fill `views` in order with at most `most_nbytes` from a non-blocking socket, adding each piece as it arrives.

        How many bytes came, and why no more: 0 as many as there was room for or as were wanted, -1 the peer has ended
        the stream, else an errno: EAGAIN when there is nothing for now.
        """

SHA256_PATH: str
"""How sha256 is taken on this processor: `sha-ni`, by its own instructions, or `portable`."""

def sha256(*pieces: Buffer) -> bytes:
    """The sha256 of all pieces together; for tests, as the two below: Python has hashlib."""

def sha256_portable(data: Buffer, /) -> bytes:
    """The sha256 of `data`, without the processor's own instructions."""

def hmac_sha256(key: Buffer, data: Buffer, /) -> bytes:
    """The HMAC-SHA256 of `data`."""

class Credentials:
    """The gateway's credentials, for the native data plane: whom a request speaks for, without the GIL.

    `kvgate.auth.native_credentials` makes one. It is never changed; its keys are wiped with it.
    """

    def __new__(
        cls, credentials: Sequence[tuple[str, str, int, bytes]], *, max_skew_s: float, session_ttl_s: float
    ) -> Credentials:
        """
        credentials:   (access key, secret key, the tenant's number from 0, `kvgate.auth.session.token_key`) of each
        max_skew_s:    how far a request's time may be from ours
        session_ttl_s: the longest that a token is good for; 0 accepts none
        Limits are rounded down to seconds. Raises ValueError for an access key that is given twice.
        """

    def authenticate(self, method: str, path: bytes, headers: dict[str, bytes], now_s: int, /) -> int:
        """The number of the tenant that a request speaks for; -1: not proved here, ask Python. For tests: the plane
        asks for itself, with the heads that it has read.

        headers: by lower-case name
        now_s:   seconds since the epoch, rounded down
        """

class Plane:
    """Threads that own plain connections between requests, answer HEAD and GET of published objects by themselves, and
    receive the bodies of PUTs where they are told to.

    Whatever they are not sure of they hand over, with what has been read of it: other methods, a query, an unusual
    header, a signature that is not proved, an object that is not published. They never answer an error.

    Published bytes are verified, block by block, before they leave. All methods are for one thread, the event loop's.
    """

    def __new__(
        cls,
        credentials: Credentials,
        *,
        threads: int,
        domains: Sequence[str],
        max_header: int,
        idle_timeout_s: float,
        header_timeout_s: float,
        body_timeout_s: float,
        min_rate: float,
        latency_buckets_s: Sequence[float],
    ) -> Plane:
        """
        domains:           in lower case; requests to hosts below them are handed over
        max_header:        bytes of the longest head
        min_rate:          bytes a second that an answer must move at on the average, after body_timeout_s
        latency_buckets_s: 15 bounds
        Raises OSError where the system refuses threads or descriptors.
        """

    def fileno(self) -> int:
        """Readable when `handed`, `asked`, `received`, `released` or `corrupt` has something new, until `handed` is
        called.
        """

    @property
    def connections(self) -> int:
        """How many it owns."""

    def adopt(self, fd: int, listener: int, exact: bool, /) -> None:
        """Own a non-blocking socket that waits for its next request. Raises OSError; then it is still the caller's.

        listener: a number that comes back with it; exact: whether a range that ends behind its object is not for us
        """

    def handed(self) -> list[tuple[int, int, bytes]]:
        """The connections handed over since the last call: socket, the caller's again, listener, what has been read."""

    def asked(self) -> list[tuple[int, int, str, int, str | None, str | None]]:
        """The PUTs whose heads have come since the last call: a number, the tenant's, the path as in `publish`, the
        length of the body in bytes (1 or more), Content-Type and x-amz-checksum-crc64nvme.

        Each is to be given to `receive` or to `decline`; its number may be used again when it has been answered.
        """

    def receive(self, number: int, views: Sequence[Buffer], digest: BlockDigest, at_once: bool, /) -> int | None:
        """Have the body of a PUT received into `views`, in order, and added to `digest`, which is of nothing yet.

        None where more is to come: `received` tells when no more does, and until then, or until `close`, both are used.
        Else what `received` would tell.

        at_once: whether to take what has come in this thread, at most 1 MiB, instead of waking another
        Raises ValueError where there is no room for it, KeyError for a number that does not wait.
        """

    def received(self) -> list[tuple[int, int]]:
        """The PUTs of which no more comes, since the last call: the number, and why. 0 the body is whole, -1 the peer
        has ended the stream, -2 it came too slowly, else an errno. Each is to be given to `answer` or `refuse`.
        """

    def answer(self, number: int, lines: bytes, /) -> None:
        """Answer 200 with these header lines, and go on with the connection.

        Raises ValueError where the body is not whole, KeyError for a number that does not wait.
        """

    def refuse(self, number: int, whole: bytes, closes: bool, /) -> None:
        """Answer this; the connection ends with it if `closes`, or if the body is not whole. Raises KeyError."""

    def decline(self, number: int, /) -> tuple[int, int, bytes]:
        """As `handed`, the connection of a PUT that is not to be received here."""

    def publish(
        self, tenant: int, path: Buffer, head: Buffer, checksums: Buffer, views: Sequence[Buffer], blocks: Buffer, /
    ) -> int:
        """Answer for an object from now on; a number that is never used again.

        tenant:    its number among the credentials
        path:      `/bucket/key`, of A-Z a-z 0-9 . _ ~ / - alone
        head:      the header lines that describe it; checksums: those that x-amz-checksum-mode: ENABLED adds
        views:     its bytes, which are held until nobody reads them any more; at least one byte
        blocks:    the crc64nvme of each MiB of them, as native uint64
        Raises ValueError where the tenant has an object of this path.
        """

    def withdraw(self, number: int, /) -> bool:
        """Answer nobody from an object any more. Whether its bytes have been let go; else `released` will name it.

        Raises KeyError for one that is not published.
        """

    def released(self) -> list[int]:
        """The withdrawn ones whose bytes have been let go since the last call."""

    def readers(self, number: int, /) -> int:
        """How many answers are being sent from an object; 0 for one that is not published."""

    def used(self) -> list[int]:
        """The objects that a GET has been answered from since the last call, each once, in the order of the first."""

    def corrupt(self) -> list[int]:
        """Those whose bytes did not match their digests: found by nobody, and still to be withdrawn."""

    def counts(self) -> PlaneCounts:
        """What it has done so far."""

    def drain(self) -> None:
        """End connections: idle ones now, the others with their next answer."""

    def close(self) -> None:
        """End the threads, and cut what is left; afterwards only `close` and `connections` may be used."""

class _Answers(TypedDict):
    answers: dict[int, int]
    seconds: float
    latencies: list[int]

class PlaneCounts(TypedDict):
    """`answers` by status, the sum of their `seconds`, and how many fell between the `latencies` buckets, the last of
    which is for what took longer than all; `late` are connections that were cut, by what was waited for."""

    GetObject: _Answers
    HeadObject: _Answers
    PutObject: _Answers
    sent_bytes: int
    received_bytes: int
    late: dict[str, int]

def find_chain(objects: Mapping[str, T], prefix: str, hashes: bytes, /) -> list[T]:
    """See kvgate.store.plain_walks.find_chain."""

def add_leases(entries: Iterable[_Leased], more: int, /) -> None:
    """See kvgate.store.plain_walks.add_leases. Raises TypeError for what has no slot for leases."""
