"""A run as a table for terminals, as markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import Figure, Goal

COLUMNS = (
    "row", "server", "rate", "of limit", "p50 us", "p99 us", "server s/GB", "server us/op", "client s/GB",
    "client us/op", "RSS MiB", "goal",
)  # fmt: skip
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"


def table(figures: Sequence[Figure]) -> str:
    """Columns of text, a blank line between rows."""
    lines = [list(COLUMNS), *[_cells(figure) for figure in figures]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    shown, row = [], ""
    for cells in lines:
        if shown and cells[0] != row:
            shown.append("")
        row = cells[0]
        aligned = [
            cell.ljust(width) if column in (0, 1, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        shown.append("  ".join(aligned).rstrip())
    return "\n".join(shown)


def verdict(figures: Sequence[Figure]) -> str:
    """How many goals were reached, and which were not."""
    goals = [(figure.row, goal) for figure in figures for goal in figure.goals if goal.met is not None]
    missed = [f"  {row}: {goal.text}" for row, goal in goals if not goal.met]
    return "\n".join([f"{len(goals) - len(missed)} of {len(goals)} goals reached", *missed])


def markdown(run: dict[str, Any], figures: Sequence[Figure]) -> str:
    """The block that docs/performance.md shows: the machine, the command, the table, and what was skipped."""
    lines = ["| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in run["machine"].items()]]
    lines += [f"| command | `{run['command']}`, {run['rounds']} rounds of {run['seconds']:g} s |", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    row = ""
    for figure in figures:
        cells = _cells(figure)
        if figure.contender.startswith("kvgate"):
            cells[1] = f"**{cells[1]}**"
        cells[0], row = ("" if cells[0] == row else cells[0]), cells[0]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *[line.strip() for line in verdict(figures).splitlines()[:1]]]
    lines += [f"- missed: {line.strip()}" for line in verdict(figures).splitlines()[1:]]
    lines += [f"- skipped: {what}: {reason}" for what, reason in run["skipped"].items()]
    return "\n".join(lines) + "\n"


def write_markdown(path: Path, block: str) -> None:
    """Write the block, or put it in the place of the one between the two marks of a document that has them."""
    text = path.read_text() if path.exists() else ""
    if BEGIN in text and END in text:
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        block = f"{before}{BEGIN}\n{block}{END}{after}"
    path.write_text(block)


def write_json(path: Path, run: dict[str, Any], figures: Sequence[Figure]) -> None:
    """Everything that was measured; `figures` are those of figures.py, as they are."""
    path.write_text(json.dumps({**run, "figures": [dataclasses.asdict(figure) for figure in figures]}, indent=1) + "\n")


def _cells(figure: Figure) -> list[str]:
    of_limit = "" if figure.of_limit is None or figure.is_limit else f"{figure.of_limit:.2f}"
    return [
        figure.row,
        figure.contender,
        f"{_number(figure.value)} {figure.unit}",
        "limit" if figure.is_limit else of_limit,
        _number(figure.p50_us),
        _number(figure.p99_us),
        _number(figure.server_cpu_s_per_gb),
        _number(figure.server_us_per_operation),
        _number(figure.client_cpu_s_per_gb),
        _number(figure.client_us_per_operation),
        _number(figure.rss_mib),
        "; ".join(_goal(goal) for goal in figure.goals),
    ]


def _goal(goal: Goal) -> str:
    return f"{goal.text}: {'not compared' if goal.met is None else 'yes' if goal.met else 'NO'}"


def _number(value: float | None) -> str:
    """Three digits that count, and never an exponent."""
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 1 else f"{value:.3g}"
