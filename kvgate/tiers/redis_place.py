"""The URL of a Redis: one server, the sentinels that know the server, or some nodes of a cluster."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from kvgate.errors import ConfigError

_SCHEME = re.compile(r"(redis|rediss)(?:\+(sentinel|cluster))?")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_ACCEPTED = (
    "expected redis://host:port/db, unix:///path?db=0, redis+sentinel://host:port,host:port/service/db or "
    "redis+cluster://host:port,host:port; rediss for TLS"
)


class Address(NamedTuple):
    """Where a server listens; `host` is the path of its socket where `port` is 0."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


class Place(NamedTuple):
    """What a URL says.

    addresses: the server, the sentinels, or the first nodes to ask
    service:   the name that the sentinels have for the server
    """

    kind: Literal["single", "sentinel", "cluster"]
    addresses: tuple[Address, ...]
    tls: bool
    db: int = 0
    service: str = ""


def parse_place(url: str) -> Place:
    """Raises ConfigError, which never shows the URL: it may hold a password where it should not."""
    try:
        scheme, rest = url.split("://", 1)
        if "@" in rest:
            raise ConfigError("url: put the user and the password into `username` and `password`")
        if scheme == "unix":
            return _unix(url)
        kind = _SCHEME.fullmatch(scheme)
        if kind is None or "?" in rest or "#" in rest:
            raise ValueError
        hosts, _, path = rest.partition("/")
        parts = path.split("/") if path else []
        tls = kind[1] == "rediss"
        if kind[2] == "sentinel":
            if not 1 <= len(parts) <= 2 or not _SERVICE.fullmatch(parts[0]):
                raise ValueError
            return Place("sentinel", _addresses(hosts, 26379), tls, int((parts[1:] or ["0"])[0]), parts[0])
        if kind[2] == "cluster":
            if any(parts):
                raise ConfigError("url: a cluster has no databases")
            return Place("cluster", _addresses(hosts, 6379), tls)
        (address,) = _addresses(hosts, 6379)
        (db,) = parts or ["0"]
        return Place("single", (address,), tls, int(db or "0"))
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"url: {_ACCEPTED}") from None


def _unix(url: str) -> Place:
    parts = urlsplit(url)
    if parts.netloc or not parts.path:
        raise ValueError
    (db,) = parse_qs(parts.query).get("db", ["0"])
    return Place("single", (Address(unquote(parts.path), 0),), tls=False, db=int(db))


def _addresses(hosts: str, default_port: int) -> tuple[Address, ...]:
    found = []
    for host in hosts.split(","):
        match = _HOST.fullmatch(host)
        if match is None or not 0 < int(match[3] or default_port) < 65536:
            raise ValueError
        found.append(Address(match[1] or match[2], int(match[3] or default_port)))
    return tuple(found)
