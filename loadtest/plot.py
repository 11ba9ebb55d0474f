"""A run as a picture: the speed of every server in each row, and what a GB costs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from figures import Figure

COLOURS = {
    "raw": "#9e9e9e", "kvgate": "#c2185b", "redis": "#ef6c00", "valkey": "#f9a825", "memcached": "#2e7d32",
    "nginx": "#00838f", "seaweedfs": "#1565c0",
}  # fmt: skip


def write_plot(path: Path, figures: Sequence[Figure], machine: str) -> None:
    """Write a PNG. Raises ModuleNotFoundError without matplotlib, and ValueError when no row is in GB/s."""
    import matplotlib as mpl  # noqa: PLC0415  only a plot needs it, and it takes a second

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figures = [figure for figure in figures if figure.unit == "GB/s" and figure.contender in COLOURS]
    rows = list(dict.fromkeys(figure.row for figure in figures))
    if not rows:
        raise ValueError("there is nothing to plot: no row was measured in GB/s")
    contenders = [name for name in COLOURS if any(figure.contender == name for figure in figures)]
    by_place = {(figure.row, figure.contender): figure for figure in figures}
    size = (max(8, 1.1 * len(rows)), 8)
    sheet, (speed, cost) = pyplot.subplots(2, 1, figsize=size, sharex=True, constrained_layout=True)
    width = 0.85 / len(contenders)
    for number, name in enumerate(contenders):
        at = [place + (number - (len(contenders) - 1) / 2) * width for place in range(len(rows))]
        found = [by_place.get((row, name)) for row in rows]
        speeds = [figure.value if figure else 0.0 for figure in found]
        costs = [(figure.server_cpu_s_per_gb or 0.0) if figure else 0.0 for figure in found]
        speed.bar(at, speeds, width, label=name, color=COLOURS[name])
        cost.bar(at, costs, width, color=COLOURS[name])
    speed.set_ylabel("GB/s")
    speed.legend(ncols=len(contenders), fontsize="small", frameon=False)
    speed.set_title(machine, fontsize="small", loc="left")
    cost.set_ylabel("server CPU, s/GB")
    cost.set_ylim(0, 2)  # the slowest would flatten all others
    cost.set_xticks(range(len(rows)), rows, rotation=35, ha="right")
    for axes in (speed, cost):
        axes.grid(axis="y", linewidth=0.3)
        axes.set_axisbelow(True)
    sheet.savefig(path, dpi=110)
    pyplot.close(sheet)
