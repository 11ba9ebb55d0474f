"""The buckets and what their owners have set for them: a small JSON file, replaced as a whole."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from kvgate.chunk.key import check_bucket
from kvgate.store.index import Bucket

logger = logging.getLogger(__name__)


class Catalog:
    """Remembers buckets in a file, or not at all without a path. Methods block."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> dict[tuple[str, str], Bucket]:
        """Every bucket, by its tenant and name.

        A file that cannot be read is set aside: buckets of the configuration and those that hold objects are known
        without it, and without settings they are private.
        """
        if self._path is None or not self._path.exists():
            return {}
        try:
            content = json.loads(self._path.read_bytes())
            buckets = {}
            for item in content["buckets"]:
                check_bucket(item["bucket"])
                settings = {str(name): str(text) for name, text in item.get("settings", {}).items()}
                bucket = Bucket(item["bucket"], int(item["created_ms"]), settings)
                buckets[item["tenant"], bucket.name] = bucket
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self._path.with_suffix(".unreadable")
            self._path.replace(aside)
            logger.warning(
                "the list of buckets cannot be read (%s) and is now %s; empty buckets and settings are lost",
                error,
                aside,
            )
            return {}
        return buckets

    def save(self, buckets: Mapping[tuple[str, str], Bucket]) -> None:
        """Replace the file. Raises OSError, leaving it as it was."""
        if self._path is None:
            return
        rows = [
            {
                "tenant": tenant,
                "bucket": bucket.name,
                "created_ms": bucket.created_ms,
                "settings": dict(bucket.settings),
            }
            for (tenant, _), bucket in buckets.items()
        ]
        temporary = self._path.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump({"version": 1, "buckets": rows}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
