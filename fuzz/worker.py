"""One target under atheris, which chooses its inputs by the code that they reach.

    python -m fuzz.worker TARGET [LIBFUZZER-OPTION ...] FOLDER ...

https://llvm.org/docs/LibFuzzer.html#options
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["kvgate"], enable_loader_override=False):
    from fuzz.targets import TARGETS


def main() -> None:
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *options], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
