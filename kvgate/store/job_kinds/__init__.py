"""What jobs can do: one file a kind, behind the protocol in base.py. A new one is a file, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from kvgate.store.job_kinds.base import Kind
from kvgate.store.job_kinds.clear import Clear
from kvgate.store.job_kinds.compress import Compress
from kvgate.store.job_kinds.copy import Copy
from kvgate.store.job_kinds.decompress import Decompress
from kvgate.store.job_kinds.move import Move
from kvgate.store.job_kinds.pin import PinJob
from kvgate.store.job_kinds.prefetch import PrefetchJob
from kvgate.store.job_kinds.unpin import Unpin

_ALL: tuple[type[Kind], ...] = (PrefetchJob, Copy, Move, Clear, PinJob, Unpin, Compress, Decompress)

KINDS: Mapping[str, type[Kind]] = {kind.name: kind for kind in _ALL}
"""Every kind by its name."""
