"""One line of `kvgate doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What one probe found.

    state:   `ok`, `warn` (works, but slower or smaller than it could) or `absent` (not there, and not required)
    meaning: what kvgate uses it for
    mend:    how to change it; empty where nothing needs to be done
    """

    name: str
    state: Literal["ok", "warn", "absent"]
    value: str
    meaning: str
    mend: str = ""
