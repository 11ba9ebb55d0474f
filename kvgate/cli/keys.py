"""The key pair of a gateway without a configuration file: made at its first start, then read back.

1. The file is complete from the moment it has its name, and readable by its owner alone.
2. Of two gateways that start first at the same time, one makes the pair and both use it.
3. A file that others can read is refused: its secret may be known.
"""

from __future__ import annotations

import os
import secrets
import stat
import string
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from kvgate.config import Secret, build, load_yaml, option
from kvgate.errors import ConfigError

_DEFAULT_URL = "http://127.0.0.1:9000"
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Keys:
    """What a client needs to reach a gateway, and the salt of the tenant's chain hashes."""

    url: str = option(help="where the gateway listens")
    access_key: str = option(help="the public half of the key pair")
    secret_key: Secret = option(help="the secret half of the key pair")
    salt: Secret = option(help="what keeps this tenant's chain hashes apart from all others")


def load_or_create(path: Path, url: str | None) -> tuple[Keys, bool]:
    """The keys in `path`, and whether they were made just now. The file then names `url`, where one is known.

    Raises ConfigError for a file that cannot be written, that others can read, or that does not hold keys.
    """
    created = False
    try:
        if not path.exists():
            created = _create(path, _new(url or _DEFAULT_URL))
        keys = load(path)
        if url is not None and keys.url != url:
            keys = replace(keys, url=url)
            os.replace(_write_beside(path, keys), path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; set XDG_DATA_HOME to a folder that can be written") from error
    return keys, created


def load(path: Path) -> Keys:
    """The keys in `path`. Raises ConfigError for a file that others can read, or that does not hold keys."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read this key pair (mode {mode:04o}); mend: chmod 600 {path}")
    return build(Keys, load_yaml(path), str(path))


def _new(url: str) -> Keys:
    def text(length: int) -> str:
        return "".join(secrets.choice(_ALPHABET) for _ in range(length))

    return Keys(
        url, access_key="KV" + text(18).upper(), secret_key=Secret(text(40)), salt=Secret(secrets.token_hex(32))
    )


def _create(path: Path, keys: Keys) -> bool:
    """Give a complete file its name, unless another process was first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = _write_beside(path, keys)
    try:
        os.link(written, path)
    except FileExistsError:
        return False
    finally:
        written.unlink()
    return True


def _write_beside(path: Path, keys: Keys) -> Path:
    """A complete and durable file next to `path`, under a name of its own."""
    written = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        yaml.safe_dump({name: str(value) for name, value in asdict(keys).items()}, file, sort_keys=False)
        file.flush()
        os.fsync(fd)
    return written
