"""Listening sockets, and the errors that an operator can act on."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from kvgate.errors import ConfigError

BACKLOG = 1024
_PROBE_S = 1.0


def listen_tcp(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises ConfigError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"listen: {host}:{port} cannot be had ({error.strerror or error}); is another gateway running?"
        ) from error


@contextlib.contextmanager
def listening_unix(
    path: str, option: str, kind: int = socket.SOCK_STREAM, mode: int = 0o600
) -> Iterator[socket.socket]:
    """A unix socket that listens at `path`, by default for this user only; the path goes with it.

    kind: SOCK_STREAM or SOCK_SEQPACKET
    A socket that nobody listens on any more is replaced. Raises ConfigError, naming the option that gave the path.
    """
    try:
        _remove_dead(path, option, kind)
        listener = socket.socket(socket.AF_UNIX, kind)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        Path(path).chmod(mode)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be had ({error.strerror or error})") from error
    inode = os.stat(path).st_ino
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:  # not when another gateway has replaced it
                Path(path).unlink()


def _remove_dead(path: str, option: str, kind: int) -> None:
    """Remove a socket file that a gateway has left behind."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{option}: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise ConfigError(f"{option}: somebody listens on {path}; is another gateway running?")
