"""The targets. A new one is a `Target` in a file here, and that file's name in `_FILES`."""

from __future__ import annotations

from fuzz.targets import (
    batch,
    chunk_bodies,
    chunked,
    disk_files,
    fields,
    formats,
    forms,
    handoff,
    heads,
    keys,
    kvapi,
    native_proofs,
    peers,
    policies,
    redis_heads,
    requests,
    s3_answers,
    sessions,
    sigv2,
    sigv4,
    xml,
)
from fuzz.targets.base import Target

_FILES = (
    requests,
    kvapi,
    batch,
    sigv4,
    native_proofs,
    sigv2,
    sessions,
    policies,
    chunked,
    xml,
    fields,
    formats,
    chunk_bodies,
    disk_files,
    peers,
    redis_heads,
    s3_answers,
    forms,
    keys,
    handoff,
    heads,
)  # what takes longest, first

TARGETS: dict[str, Target] = {target.name: target for file in _FILES for target in file.TARGETS}
"""Every target that is fuzzed in its own process, by name."""
