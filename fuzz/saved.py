"""Inputs for which a property once did not hold, one file each in `fuzz/corpus/<target>/`; the tests replay them.

What an input stands for changes with the tables of its target. What was found is therefore also held by a test of the
code that was mended.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def digest(data: bytes) -> str:
    """The name of an input's file."""
    return hashlib.sha256(data).hexdigest()[:16]


def keep(target: str, data: bytes) -> Path:
    """Save an input, and say where."""
    path = FOLDER / target / digest(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def kept(target: str) -> list[bytes]:
    """Every input that was saved for a target."""
    return [path.read_bytes() for path in sorted((FOLDER / target).glob("*"))]
