"""The sources of the kernels, and what each compiles to, kept on disk by architecture and options."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent / "csrc"

OPTIONS = ("--std=c++17", "--fmad=false", "--prec-div=true", "--ftz=false")
"""Every operation on numbers rounds as the twin's does: once, in its own order, subnormal numbers included."""

_INCLUDE = re.compile(r'^#include "([a-z_]+\.cuh)"\n', re.MULTILINE)


def text(name: str) -> str:
    """A source file as one text, with the files that it includes in their places, each once.

    So NVRTC needs no header from anywhere, and a digest of the text says all that a binary depends on.
    """
    seen: set[str] = set()

    def expand(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        content = (FOLDER / file).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return _INCLUDE.sub(lambda match: expand(match[1]), content)

    return expand(name)


def names() -> list[str]:
    """The source files that have kernels."""
    return sorted(path.name for path in FOLDER.glob("*.cu"))


def cache_folder() -> Path:
    """Where binaries are kept: `$KVGATE_KERNEL_CACHE`, or kvgate/kernels in the user's cache folder."""
    if chosen := os.environ.get("KVGATE_KERNEL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kvgate" / "kernels"


def binary(name: str, architecture: str, compiler: str, compile_text: Callable[[str], bytes]) -> bytes:
    """The compiled source file: from disk, or from `compile_text`, and then on disk for the next process.

    compiler: its name and version, part of what a binary is kept under
    A file that is damaged is compiled anew, and a folder that cannot be written to is done without.
    """
    source = text(name)
    identity = "\0".join((source, architecture, compiler, *OPTIONS))
    path = cache_folder() / f"{Path(name).stem}-sm{architecture}-{hashlib.sha256(identity.encode()).hexdigest()}.cubin"
    if (kept := _read(path)) is not None:
        return kept
    made = compile_text(source)
    _write(path, made)
    return made


def _read(path: Path) -> bytes | None:
    """What was written, if all of it is there: the file begins with the digest of the rest."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, made = content[:32], content[32:]
    return made if hashlib.sha256(made).digest() == digest else None


def _write(path: Path, made: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(made).digest() + made)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        return
