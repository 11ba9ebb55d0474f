"""What a gateway was asked to do, from its own counters."""

from __future__ import annotations

import re

from tests.gateways import RunningGateway

_SAMPLE = re.compile(r'kvgate_requests_total\{operation="(\w+)",status="(\d+)"\}')


class Requests:
    """The requests that a gateway has answered since this was made."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._gateway = gateway
        self._before = self._counts()

    def count(self, *operations: str) -> int:
        """How many of these operations were carried out."""
        counts = self._since().items()
        return sum(number for (operation, status), number in counts if operation in operations and status < "300")

    def failures(self) -> dict[tuple[str, str], int]:
        """The operations that the gateway could not carry out or does not offer, by name and status."""
        return {of: number for of, number in self._since().items() if of[1] >= "500" and number}

    def _since(self) -> dict[tuple[str, str], int]:
        return {of: number - self._before.get(of, 0) for of, number in self._counts().items()}

    def _counts(self) -> dict[tuple[str, str], int]:
        found = {_SAMPLE.fullmatch(name): value for name, value in self._gateway.metrics().items()}
        return {(match[1], match[2]): int(value) for match, value in found.items() if match}
