"""Where a client finds its gateway and its credential."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kvgate.config import Secret, build, load_yaml, option
from kvgate.errors import ConfigError

_MEND = "start one with `kvgate serve`, or set KVGATE_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


@dataclass(frozen=True)
class Credentials:
    """What a client needs: `Client(found.url, found.access_key, found.secret_key)`."""

    url: str
    access_key: str
    secret_key: Secret


@dataclass(frozen=True)
class _File:
    url: str = option(help="where the gateway listens")
    access_key: str = option(help="the public half of the key pair")
    secret_key: Secret = option(help="the secret half of the key pair")
    salt: Secret | None = option(default=None, help="for the gateway only")


def find_credentials(
    url: str | None = None, access_key: str | None = None, secret_key: str | None = None, *, path: Path | None = None
) -> Credentials:
    """The gateway and the key pair to use.

    The URL is the argument, else that of the file `path` where one is named, else KVGATE_URL. The key pair comes whole
    from one place: the arguments, else the named file, else AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. What is found
    nowhere comes from the file that `kvgate serve` writes: $XDG_DATA_HOME/kvgate/credentials.yaml.
    Raises ConfigError for half a key pair, for a file that others can read, and when something is found nowhere.
    """
    pair = _pair("the arguments access_key and secret_key", access_key, secret_key)
    if path is None:
        url = url or os.environ.get("KVGATE_URL")
        pair = pair or _pair(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            os.environ.get("AWS_ACCESS_KEY_ID"),
            os.environ.get("AWS_SECRET_ACCESS_KEY"),
        )
    if url and pair:
        return Credentials(url, *pair)
    found = _read(path or _default_path(), "no key pair" if url else "no gateway URL")
    return Credentials(url or found.url, *(pair or (found.access_key, found.secret_key)))


def _pair(where: str, access_key: str | None, secret_key: str | None) -> tuple[str, Secret] | None:
    if bool(access_key) != bool(secret_key):
        raise ConfigError(f"only one of {where} is given; a key pair needs both")
    return (access_key, Secret(secret_key)) if access_key and secret_key else None


def _default_path() -> Path:
    home = Path(os.environ.get("XDG_DATA_HOME", ""))  # a relative one is ignored, as the XDG specification asks
    return (home if home.is_absolute() else Path.home() / ".local" / "share") / "kvgate" / "credentials.yaml"


def _read(path: Path, wanted: str) -> _File:
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        raise ConfigError(f"{wanted} is given, and there is no {path}; {_MEND}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read this key pair (mode {mode:04o}); mend: chmod 600 {path}")
    return build(_File, load_yaml(path), str(path))
