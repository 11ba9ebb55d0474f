"""How a test speaks with an engine's process: a JSON object a line, one command or one answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from prompts import prompt


def answer_commands(start: Callable[[], Any]) -> None:
    """Answer the commands on stdin with the methods of what `start` returns, named by `do`, until stdin ends.

    The other fields of a command say which prompt the method gets, and which label. The process ends at once, as an
    engine that is killed: LMCache 0.5.6 waits for itself for ever when it closes its S3 connector.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever LMCache prints is log
    engine = start()
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(engine, command["do"])(prompt(**command), command.get("label", ""))), file=answers)
    os._exit(0)
