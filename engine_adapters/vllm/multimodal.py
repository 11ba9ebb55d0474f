"""Whether images and audio of a request are named by their content."""

from __future__ import annotations

import re
from typing import Any

_CONTENT_HASH = re.compile(r"(?:.{1,256}:)?[0-9a-f]{64}(?:[0-9a-f]{64})?", re.DOTALL)
"""What vLLM makes of an input itself: a hash of 256 or 512 bits, for encoders with LoRA after the adapter's name."""


def is_named_by_caller(request: Any) -> bool:
    """Whether a name of an input came with the request (`multi_modal_uuids`), so that another input may have it too."""
    return any(not _CONTENT_HASH.fullmatch(feature.identifier or "") for feature in request.mm_features or ())
