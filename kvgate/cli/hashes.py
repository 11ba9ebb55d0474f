"""Chunk hashes in a file, one a line, as verbs take those of a prompt."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from kvgate.chunk.chain import HASH_NBYTES
from kvgate.cli.terminal import human_size
from kvgate.errors import ConfigError

HASH = re.compile(rf"[0-9a-f]{{{2 * HASH_NBYTES}}}")
"""A chunk hash, and the id of a space."""

_MAX_FILE_NBYTES = 64 << 20


def read_hashes(name: str) -> list[bytes]:
    """The hashes in a file, one a line. Raises ConfigError naming the line that has none."""
    try:
        if name == "-":
            text = sys.stdin.read(_MAX_FILE_NBYTES + 1)
        else:
            with Path(name).open() as file:
                text = file.read(_MAX_FILE_NBYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read") from error
    if len(text) > _MAX_FILE_NBYTES:
        raise ConfigError(f"{name}: longer than {human_size(_MAX_FILE_NBYTES)}")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in lines:
        if not HASH.fullmatch(line):
            raise ConfigError(f"{name}, line {number}: expected a hash of 64 lower-case hex digits")
    if not lines:
        raise ConfigError(f"{name}: holds no hash")
    return [bytes.fromhex(line) for _, line in lines]
