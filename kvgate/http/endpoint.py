"""Where a server listens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from kvgate.errors import ConfigError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The scheme, host and port of a server."""

    scheme: str
    host: str
    port: int

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """The value of the Host header: the port is left out when it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_endpoint(url: str, what: str = "the gateway URL") -> Endpoint:
    """The endpoint of `http://host[:port]` or `https://host[:port]`.

    what: what errors call it
    Raises ConfigError for anything else, a path, a query or a user name included: paths would break signatures, and
    credentials have parameters of their own.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{what} cannot be read: {error}") from None
    if parts.scheme not in _DEFAULT_PORTS or not host or not _PRINTABLE.fullmatch(url):
        raise ConfigError(f"{what} must be http://host[:port] or https://host[:port]")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"{what} must hold a scheme, a host and a port only")
    return Endpoint(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port)
