"""vLLM with and without a gateway: time to the first token, throughput and CPU, when prompts begin as others did.

    .ci/vllm && PYTHONPATH=. .venv/bin/python loadtest/vllm_reuse.py [--plot reuse.png] [--markdown reuse.md]

Three kinds of work, with SmolLM2-135M on the CPU:

    prefix     one prompt of 2,000 tokens, over and over, one request at a time
    turns      users talk in turn; every prompt is the whole conversation so far
    documents  questions about a few long documents, in random order

`alone` is vLLM with its own prefix cache, which is smaller than what all users need, as where there are more users than
memory (for `prefix` it is emptied between requests). `kvgate` is a new vLLM with the connector and an empty gateway;
`kvgate, again` the same work in yet another vLLM, which finds in the gateway what the one before has left there. Ratios
are to `alone` in the same run. The tokens that come out must be the same in all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from processes import cpu_s

from tests.engine_adapters.vllm.engine import SMOLLM2, Engine, Request, Result, connector, why_unavailable
from tests.gateways import RunningGateway, default_config

NEW_TOKENS = 16
LIMIT_S = 1800.0
COLOURS = {"alone": "#9e9e9e", "kvgate": "#c2185b", "kvgate, again": "#6a1b9a"}
Work = Callable[[Engine], list[Result]]


@dataclass(frozen=True)
class Run:
    """One kind of work, done by one contender. cpu_s: of the engine and, with one, the gateway."""

    work: str
    contender: str
    ttfts_s: list[float]
    total_s: float
    cpu_s: float
    prompt_tokens: int
    computed_tokens: int
    tokens: list[list[int]]

    @property
    def p50_s(self) -> float:
        return statistics.median(self.ttfts_s)

    @property
    def p90_s(self) -> float:
        return statistics.quantiles(self.ttfts_s, n=10)[-1]

    @property
    def tokens_per_s(self) -> float:
        """Tokens of prompts that were answered, a second."""
        return self.prompt_tokens / self.total_s


def prefix(engine: Engine, requests: int) -> list[Result]:
    """The same long prompt with another last token, each time as if the engine had just started."""
    text = _tokens(random.Random(5), 2000)
    results = []
    for number in range(requests):
        results.append(engine.tell([*text, 1000 + number], max_tokens=NEW_TOKENS))
        engine.idle(0.5)
        engine.reset_prefix_cache()
    return results


def turns(engine: Engine, users: int, rounds: int) -> list[Result]:
    """Every user has a first message of its own, and each answer is followed by another message."""
    generator = random.Random(7)
    texts = [_tokens(generator, 256) for _ in range(users)]
    results: list[Result] = []
    for _ in range(rounds):
        answers = engine.generate([Request(list(text), NEW_TOKENS) for text in texts], 2, LIMIT_S)
        results += answers
        for text, answer in zip(texts, answers, strict=True):
            text.extend(answer.tokens + _tokens(generator, 64))
    return results


def documents(engine: Engine, count: int, questions: int) -> list[Result]:
    """Each document of 1,500 tokens is asked about `questions` times."""
    generator = random.Random(11)
    texts = [_tokens(generator, 1500) for _ in range(count)]
    asked = [text + _tokens(generator, 24) for text in texts for _ in range(questions)]
    generator.shuffle(asked)
    return engine.generate([Request(text, NEW_TOKENS) for text in asked], 2, LIMIT_S)


def _tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(100, 40_000) for _ in range(count)]


def run(name: str, work: Work, contender: str, engine: Engine, gateway: RunningGateway | None) -> Run:
    """Do the work and end the engine."""
    pids = [engine.pid, *([gateway.process.pid] if gateway and gateway.process else [])]
    engine.tell(_tokens(random.Random(contender), 40), max_tokens=2)  # what only the first request takes
    before_s, began = sum(map(cpu_s, pids)), time.monotonic()
    results = work(engine)
    total_s, used_s = time.monotonic() - began, sum(map(cpu_s, pids)) - before_s
    if gateway:
        engine.idle(2.0)  # what is still being stored is for the next one
    engine.close()
    return Run(
        name,
        contender,
        [result.ttft_s or result.total_s for result in results],
        total_s,
        used_s,
        sum(result.prompt_tokens for result in results),
        sum(result.computed_tokens for result in results),
        [result.tokens for result in results],
    )


def measure(name: str, work: Work, folder: Path, max_tokens: int, kv_cache_nbytes: int) -> list[Run]:
    """All contenders, one after the other. Raises RuntimeError where their tokens differ.

    In float32: most CPUs are slower in bfloat16, and there tokens depend on the pieces in which a prompt is computed.
    """
    gateway_folder = folder / "gateway"
    gateway_folder.mkdir(parents=True)
    config = default_config(gateway_folder)
    config["tiers"]["host"] = {"capacity": "1GiB"}
    config["listen"]["shm_socket"] = str(gateway_folder / "shm.sock")
    gateway = RunningGateway(gateway_folder, config).start()
    runs: list[Run] = []
    try:
        for contender in COLOURS:
            own = contender == "alone"
            extra: dict[str, Any] = {} if own else {"kv_transfer_config": connector(gateway, chunk_tokens=64)}
            log = folder / f"{contender}.log"
            sizes = {"kv_cache_memory_bytes": kv_cache_nbytes, "max_model_len": max_tokens}
            engine = Engine(log, SMOLLM2, dtype="float32", **sizes, **extra)
            try:
                runs.append(run(name, work, contender, engine, None if own else gateway))
            finally:
                engine.kill()
            print(row(runs[-1], runs[0]), flush=True)
    finally:
        gateway.kill()
    if any(each.tokens != runs[0].tokens for each in runs):
        raise RuntimeError(f"{name}: not all contenders have answered with the same tokens")
    return runs


HEADINGS = ("work", "contender", "TTFT p50", "ratio", "p90", "prompt tokens/s", "ratio", "computed", "CPU s")


def cells(each: Run, base: Run) -> list[str]:
    """A line of the table."""
    return [
        each.work,
        each.contender,
        f"{1000 * each.p50_s:.0f} ms",
        f"{each.p50_s / base.p50_s:.3f}",
        f"{1000 * each.p90_s:.0f} ms",
        f"{each.tokens_per_s:.0f}",
        f"{each.tokens_per_s / base.tokens_per_s:.2f}",
        f"{100 * each.computed_tokens / each.prompt_tokens:.0f} %",
        f"{each.cpu_s:.1f}",
    ]


def row(each: Run, base: Run) -> str:
    widths = (9, 13, 9, 6, 9, 15, 6, 8, 7)
    return "  ".join(cell.rjust(width) for cell, width in zip(cells(each, base), widths, strict=True))


def plot(path: Path, runs: Sequence[Run]) -> None:
    """How the times to the first token are spread, one panel for each kind of work."""
    import matplotlib as mpl  # noqa: PLC0415  only a plot needs it, and it takes a second

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    works = list(dict.fromkeys(each.work for each in runs))
    sheet, panels = pyplot.subplots(1, len(works), figsize=(4.5 * len(works), 3.6), squeeze=False, layout="constrained")
    for panel, work in zip(panels[0], works, strict=True):
        for each in runs:
            if each.work == work:
                times = sorted(each.ttfts_s)
                shares = [(place + 1) / len(times) for place in range(len(times))]
                panel.step(times, shares, where="post", color=COLOURS[each.contender], label=each.contender)
        panel.set(title=work, xlabel="time to first token, s", xscale="log", ylim=(0, 1.02))
        panel.grid(linewidth=0.3)
    panels[0][0].set_ylabel("share of requests")
    panels[0][0].legend(frameon=False, fontsize="small")
    sheet.savefig(path, dpi=110)
    pyplot.close(sheet)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("prefix", "turns", "documents"), help="only this one")
    parser.add_argument("--quick", action="store_true", help="a third of the requests")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a picture")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for docs/vllm.md")
    options = parser.parse_args()
    if reason := why_unavailable():
        sys.exit(reason)
    few = 3 if options.quick else 1
    works: dict[str, tuple[Work, int, int]] = {
        "prefix": (lambda engine: prefix(engine, 9 // few), 2112, 128 << 20),
        "turns": (lambda engine: turns(engine, 9 // few, 4), 640, 40 << 20),
        "documents": (lambda engine: documents(engine, 4, 6 // few), 1600, 96 << 20),
    }
    told = machine.describe("", os.getloadavg()[0])
    print(", ".join(f"{name}: {value}" for name, value in told.items() if value), flush=True)
    print("  ".join(HEADINGS), flush=True)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="kvgate-vllm-") as folder:
        for name, (work, max_tokens, kv_cache_nbytes) in works.items():
            if options.work in (None, name):
                runs += measure(name, work, Path(folder) / name, max_tokens, kv_cache_nbytes)
    bases = {each.work: each for each in runs if each.contender == "alone"}
    if options.markdown:
        lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
        lines += [f"| {' | '.join(cells(each, bases[each.work]))} |" for each in runs]
        options.markdown.write_text("\n".join(lines) + "\n")
    if options.plot:
        plot(options.plot, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
