"""What Python is too slow for: a shared library, built of csrc/native where there is a C compiler at installation.

Who imports this does the same without it, slower.
"""

from collections.abc import Sequence

from typing_extensions import Buffer

CRC64NVME_PATHS: tuple[str, ...]
"""The ways that this processor has to take a crc64nvme, the fastest, which is taken, first."""

def crc64nvme(view: Buffer, value: int = 0, path: int = 0, /) -> int:
    """The crc64nvme of the bytes that `value` is of, and those of `view` behind them.

    path: which of CRC64NVME_PATHS to take
    """

def combine_crc64nvme(first: int, second: int, second_nbytes: int, /) -> int:
    """The crc64nvme of two runs of bytes, one behind the other, from their own."""

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
