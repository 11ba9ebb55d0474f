"""The buckets that were made by request: a small JSON file, replaced as a whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from kvgate.chunk.key import check_bucket

logger = logging.getLogger(__name__)


class Catalog:
    """Remembers buckets in a file, or not at all without a path. Methods block."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> dict[tuple[str, str], int]:
        """Every (tenant, bucket) and when it was made, in ms since the epoch.

        A file that cannot be read is set aside: buckets of the configuration and those that hold objects are known
        without it.
        """
        if self._path is None or not self._path.exists():
            return {}
        try:
            content = json.loads(self._path.read_bytes())
            buckets = {(item["tenant"], item["bucket"]): int(item["created_ms"]) for item in content["buckets"]}
            for _, bucket in buckets:
                check_bucket(bucket)
        except (ValueError, KeyError, TypeError) as error:
            aside = self._path.with_suffix(".unreadable")
            self._path.replace(aside)
            logger.warning(
                "the list of buckets cannot be read (%s) and is now %s; empty buckets are lost", error, aside
            )
            return {}
        return buckets

    def save(self, buckets: Mapping[tuple[str, str], int]) -> None:
        """Replace the file. Raises OSError, leaving it as it was."""
        if self._path is None:
            return
        rows = [{"tenant": tenant, "bucket": bucket, "created_ms": ms} for (tenant, bucket), ms in buckets.items()]
        temporary = self._path.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump({"version": 1, "buckets": rows}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
