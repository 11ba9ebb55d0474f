"""The headers of nearly every request, which say only who asks, how, and how many bytes follow."""

from __future__ import annotations

ORDINARY_HEADERS = frozenset(
    {
        *("host", "user-agent", "authorization", "accept", "accept-encoding", "connection", "content-length", "range"),
        *("x-amz-date", "x-amz-content-sha256", "x-amz-checksum-mode", "amz-sdk-invocation-id", "amz-sdk-request"),
    }
)
"""None of them asks for something that may be refused, or says anything of an object or of the digest of a body."""

PLAIN_PUT_CHECKSUM = "x-amz-checksum-crc64nvme"

PLAIN_PUT_HEADERS = ORDINARY_HEADERS - {"range", "x-amz-checksum-mode"} | {
    *("content-type", "expect", "x-amz-sdk-checksum-algorithm", PLAIN_PUT_CHECKSUM)
}
"""Those that the native plane takes with a PUT (csrc/native/head.h)."""
