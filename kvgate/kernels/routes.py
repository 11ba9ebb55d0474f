"""Which way bytes take between the host and the pages: kernels that reach over the link, or a staging buffer.

`make gpu` measures both ways on the machine that it runs on and keeps what it finds beside the compiled kernels. Where
nothing was measured, a default holds that was chosen and not measured: small transfers go directly, because a launch
costs less than two, and large ones through a buffer, because copy engines leave the multiprocessors to the model.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from kvgate.kernels import source

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Routes:
    """Up to how many bytes in all a transfer goes directly.

    load:        into the pages
    store:       out of the pages
    measured_on: the GPU, its driver and the day; empty for the default
    """

    load: int = 256 << 10
    store: int = 256 << 10
    measured_on: str = ""


def path(architecture: str) -> Path:
    """Where the table of this machine lies, for a GPU of this architecture."""
    return source.cache_folder() / f"routes-sm{architecture}.json"


def routes(architecture: str) -> Routes:
    """What was measured here, or the default."""
    file = path(architecture)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        found = Routes(int(values["load"]), int(values["store"]), str(values["measured_on"]))
    except FileNotFoundError:
        return Routes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s cannot be used, so the default holds: %r", file, error)
        return Routes()
    return found


def keep(architecture: str, found: Routes) -> None:
    """Write what was measured. Raises OSError."""
    file = path(architecture)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
