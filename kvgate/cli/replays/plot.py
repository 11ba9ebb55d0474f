"""The hit rates of a replay as a picture."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvgate.errors import ConfigError


def write_plot(
    path: Path, title: str, shares: Sequence[float], hits: Mapping[str, Sequence[float]], most: float
) -> None:
    """Write a PNG, SVG or PDF of the share of tokens hit over the size of the cache. Raises ConfigError.

    shares: sizes of the cache, as shares of all blocks
    hits:   for each policy, the share of tokens hit at each size
    most:   the share that a cache hits that forgets nothing
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'kvgate[plot]'") from None
    matplotlib.use("agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    sheet, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    for policy, rates in hits.items():
        axes.plot([100 * share for share in shares], [100 * rate for rate in rates], marker="o", label=policy)
    axes.axhline(100 * most, color="#9e9e9e", linestyle="--", label="nothing forgotten")
    axes.set_xscale("log")
    axes.set_xticks([100 * share for share in shares], [f"{100 * share:.3g} %" for share in shares])
    axes.minorticks_off()
    axes.set_xlabel("cache, share of all blocks")
    axes.set_ylabel("tokens hit, %")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.legend(fontsize="small", frameon=False)
    try:
        sheet.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from error
    finally:
        pyplot.close(sheet)
