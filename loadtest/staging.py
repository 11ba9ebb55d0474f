"""What it costs to gather chunks from an engine's pages and to scatter them, beside a plain copy of the same bytes.

    python loadtest/staging.py --rounds 15

Per model and layout: GB/s of gather and of scatter, their part of the plain copy's, and CPU seconds a GB. `runs` is how
many bytes lie together in the pages and in the chunk alike. Blocks are in random order, so that no two follow each
other; with `in order` they do, as on an engine that has just started. `by layer` moves one layer a call, as layer-wise
loads do. Each figure is the best of the rounds, in CPU time of this thread; the copy and the rows take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from engine_adapters.layouts import Pages, pages_of
from engine_adapters.staging import Plan, plan
from kvgate.chunk.layout import DATA_START, Layout

CHUNK_TOKENS = 256


@dataclass(frozen=True)
class Model:
    name: str
    layers: int
    heads: int
    dim: int
    chunks: int
    """Of 256 tokens in bf16; all of them are moved by each call."""


MODELS = (Model("SmolLM2-135M", 30, 3, 64, 12), Model("Llama-3-8B", 32, 8, 128, 2))


def unified(model: Model, blocks: int, tokens: int, order: str) -> list[Any]:
    """vLLM's views [B, H, N, C] of one allocation for all layers."""
    sizes = {"L": model.layers, "B": blocks, "H": model.heads, "N": tokens, "C": 2 * model.dim}
    memory = torch.zeros([sizes[axis] for axis in order], dtype=torch.bfloat16)
    return list(memory.permute([order.index(axis) for axis in "LBHNC"]))


def vllm(model: Model, blocks: int, tokens: int, order: str, packing: str = "none") -> list[Pages]:
    name = "vllm" if packing == "none" else "vllm-cpu"
    return [
        pages_of(name, view, kv_heads=model.heads, head_dim=model.dim, block_tokens=tokens, packing=packing)
        for view in unified(model, blocks, tokens, order)
    ]


def sglang(model: Model, blocks: int, tokens: int) -> list[Pages]:
    def pool() -> Any:
        return torch.zeros((blocks * tokens, model.heads, model.dim), dtype=torch.bfloat16)

    return [
        pages_of("sglang", pool(), pool(), kv_heads=model.heads, head_dim=model.dim, block_tokens=tokens)
        for _ in range(model.layers)
    ]


Move = Callable[[Plan, Any, Any], None]


def gather(made: Plan, blocks: Any, rows: Any) -> None:
    made.gather(blocks, rows)


def scatter(made: Plan, blocks: Any, rows: Any) -> None:
    made.scatter(blocks, rows)


def by_layer(move: Callable[..., None]) -> Move:
    def each(made: Plan, blocks: Any, rows: Any) -> None:
        for layer in range(made.layers):
            move(made, blocks, rows, range(layer, layer + 1))

    return each


def cpu_s(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def measure(model: Model, rounds: int) -> None:
    layout = Layout(model.layers, 2, model.heads, CHUNK_TOKENS, model.dim, "BF16")
    total = model.chunks * layout.nbytes
    row = 2 * model.dim
    source, copy = torch.ones(total, dtype=torch.uint8), torch.zeros(total, dtype=torch.uint8)
    rows = torch.zeros((model.chunks, DATA_START + layout.nbytes), dtype=torch.uint8)[:, DATA_START:]
    print(f"\n{model.name}: {model.chunks} chunks of {layout.nbytes / 2**20:.1f} MiB")
    print(f"{'':28} {'runs':>6} {'gather GB/s':>12} {'of copy':>8} {'scatter GB/s':>13} {'of copy':>8} {'CPU s/GB':>9}")
    cases: dict[str, tuple[int, int, Callable[[int], list[Pages]], bool, bool]] = {
        "vllm-cpu": (32, 32 * row, lambda blocks: vllm(model, blocks, 32, "LBHNC", "vec"), True, False),
        "vllm-cpu, by layer": (32, 32 * row, lambda blocks: vllm(model, blocks, 32, "LBHNC", "vec"), True, True),
        "vllm LBHNC": (16, row, lambda blocks: vllm(model, blocks, 16, "LBHNC"), True, False),
        "vllm LBNHC": (16, row, lambda blocks: vllm(model, blocks, 16, "LBNHC"), True, False),
        "vllm LBNHC, in order": (16, row, lambda blocks: vllm(model, blocks, 16, "LBNHC"), False, False),
        "vllm LBNHC, by layer": (16, row, lambda blocks: vllm(model, blocks, 16, "LBNHC"), True, True),
        "vllm BLNHC": (16, row, lambda blocks: vllm(model, blocks, 16, "BLNHC"), True, False),
        "sglang, pages of 64": (64, row, lambda blocks: sglang(model, blocks, 64), True, False),
        "sglang, pages of 1": (1, row, lambda blocks: sglang(model, blocks, 1), True, False),
        "sglang, pages of 1, in order": (1, row, lambda blocks: sglang(model, blocks, 1), False, False),
    }
    for name, (tokens, run, pages, shuffled, layerwise) in cases.items():
        needed = model.chunks * CHUNK_TOKENS // tokens
        made = plan(layout, pages(needed + needed // 2))
        ids = torch.randperm(made.blocks)[:needed] if shuffled else torch.arange(needed)
        blocks = ids.view(model.chunks, -1)
        moves: dict[str, Move] = {"gather": gather, "scatter": scatter}
        if layerwise:
            moves = {"gather": by_layer(Plan.gather), "scatter": by_layer(Plan.scatter)}
        best = dict.fromkeys(("copy", *moves), float("inf"))
        for _ in range(rounds):
            best["copy"] = min(best["copy"], cpu_s(partial(copy.copy_, source)))
            for move, work in moves.items():
                best[move] = min(best[move], cpu_s(partial(work, made, blocks, rows)))
        got, put = best["gather"], best["scatter"]
        print(
            f"{name:28} {run:>6} {total / got / 1e9:>12.2f} {best['copy'] / got:>8.2f} {total / put / 1e9:>13.2f} "
            f"{best['copy'] / put:>8.2f} {(got + put) / 2 / total * 1e9:>9.3f}"
        )


def main() -> None:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="of which the best counts (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the plain copy is torch's
    for model in MODELS:
        measure(model, options.rounds)


if __name__ == "__main__":
    main()
