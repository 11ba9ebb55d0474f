"""One request, authenticated if it is signed, on its way to an operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kvgate.auth.identity import Payload
from kvgate.messages import Headers, Request
from kvgate.s3.body import PayloadReader
from kvgate.s3.target import Target


class Call(NamedTuple):
    """What an operation parses its input from. `payload_form` is how the body is protected."""

    request: Request
    target: Target
    payload_form: Payload

    @property
    def bucket(self) -> str:
        return self.target.bucket

    @property
    def key(self) -> str:
        return self.target.key

    @property
    def query(self) -> Mapping[str, str]:
        return self.target.query

    @property
    def headers(self) -> Headers:
        return self.request.headers

    @property
    def has_body(self) -> bool:
        """Whether a body comes with the request, as far as its headers say."""
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers

    def payload(self) -> PayloadReader:
        """The verified body; to be asked for once. Raises what PayloadReader raises."""
        return PayloadReader(self.request, self.payload_form)
