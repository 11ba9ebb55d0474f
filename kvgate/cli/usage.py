"""What tenants use and may use, as a table. The numbers are the members of a `stats` answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvgate.cli.terminal import human_size, printable

_HEAD = ("tier", "objects", "bytes", "limit", "floor", "fair share", "weight")
_WORDS = {"requests": "requests", "read_bytes": "reads", "write_bytes": "writes"}


def print_stats(stats: Mapping[str, Any], name: str) -> None:
    """One tenant."""
    quota = stats["quota_nbytes"]
    of = "" if quota is None else f" of {human_size(quota)}"
    objects = "1 object" if stats["objects"] == 1 else f"{stats['objects']} objects"
    print(f"{printable(name)}: {objects}, {human_size(stats['nbytes'])}{of}")
    _print_table([_HEAD, *(_row(tier, usage) for tier, usage in stats["tiers"].items())])
    if rates := _rates(stats["rates"]):
        print(f"  a second: {rates}")
    refused = {reason: count for reason, count in stats["refused"].items() if count}
    if refused:
        words = ", ".join(f"{count} by {reason.replace('_', ' ')}" for reason, count in refused.items())
        print(f"  refused since the gateway started: {printable(words)}")


def _row(tier: str, usage: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (usage[key] for key in ("nbytes", "limit_nbytes", "floor_nbytes", "fair_nbytes"))
    texts = ["-" if size is None else human_size(size) for size in sizes]
    return (printable(tier), str(usage["objects"]), *texts, f"{usage['weight']:g}")


def _rates(rates: Mapping[str, float | None]) -> str:
    texts = []
    for name, rate in rates.items():
        if rate is not None:
            size = human_size(int(rate)) if name.endswith("_bytes") else f"{rate:g}"
            texts.append(f"{size} {_WORDS.get(name, printable(name))}")
    return ", ".join(texts)


def _print_table(rows: Sequence[Iterable[str]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        first, *rest = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        print("  " + "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip())
