"""The LoRA adapters of an engine: what tells one's KV from another's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from engine_adapters.file_digest import files_digest
from kvgate.chunk.space import NO_LORA
from kvgate.errors import UnsupportedModel

_FILES = ("adapter_config.json", "*.safetensors", "*.bin", "*.pt")


class Adapters:
    """Digests of adapters, each taken once, when the engine has just loaded it. Thread-safe.

    The engine keeps what it has loaded under a number, whatever becomes of the files. A number under which an adapter
    was loaded anew in place, or which has come with two paths, has no name any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[int, tuple[str, str]] = {}

    def digest(self, lora_request: Any) -> str:
        """The digest of a request's adapter, 64 hex digits, or `none` without one. Reads files.

        Raises UnsupportedModel for one that cannot be told from others.
        """
        if lora_request is None:
            return NO_LORA
        number, path = lora_request.lora_int_id, str(lora_request.lora_path)
        with self._lock:
            if lora_request.load_inplace:
                self._digests[number] = (path, "")
            if number not in self._digests:
                self._digests[number] = (path, _of_files(path))
            known_path, digest = self._digests[number]
        if not digest or known_path != path:
            raise UnsupportedModel(f"LoRA adapter {number} was loaded from more than one place, or anew in place")
        return digest


def _of_files(path: str) -> str:
    found = [file for pattern in _FILES for file in Path(path).glob(pattern)]
    if not any(file.suffix != ".json" for file in found):
        raise UnsupportedModel(f"the LoRA adapter at {path!r} has no files here that could be hashed")
    return files_digest(found)
