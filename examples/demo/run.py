"""A gateway and three engine processes that share KV through it, one after the other.

    make demo

1. Engine 1 reads a document of about 2,200 tokens and answers a question. It is then killed.
2. Engine 2, a new process, is asked something else about the same document: the KV comes from the gateway's memory.
3. The gateway is restarted, and engine 3 does it once more: the KV comes from disk.

Every engine also answers without the gateway, for the comparison. Exits with status 1 when the text differs, when
nothing was reused, or when the first token did not come at least ten times sooner.
"""

# ruff: noqa: S603  (it runs what the demo is made of)
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gateway import Gateway
from model import cached_model
from safetensors import safe_open

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "LICENSE"
QUESTIONS = (
    "What is this document?",
    "Who may sublicense the Work?",
    "What does this document say about trademarks?",
)
BUCKET = "demo"
LARGEST_RATIO = 0.1
LISTED_OBJECTS = 5

_start_s = time.monotonic()


@dataclass(frozen=True)
class Run:
    """What one engine reported, and where its KV came from."""

    name: str
    source: str
    result: dict[str, Any]

    @property
    def ratio(self) -> float:
        return float(self.result["ttft_s"] / self.result["recomputed_ttft_s"])


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # so that every `finally` runs
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # for the processes started here
    say("model: SmolLM2-135M-Instruct, float32, on one CPU thread")
    model = cached_model()
    if not model.exists():
        prepare(model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvgate-demo-")))
        gateway = Gateway(folder, BUCKET)
        stack.callback(gateway.stop)
        gateway.start()
        say(f"gateway: {gateway.url}, memory and disk in {folder}")
        runs = []
        for name, source, question in zip(("1", "2", "3"), ("nothing yet", "memory", "disk"), QUESTIONS, strict=True):
            if source == "disk":
                gateway.stop()
                gateway.start()
                say("gateway: restarted")
            say(f"gateway: holds {gateway.held()}")
            say(f"engine {name}: {question}")
            with engine(gateway, model, question) as report:
                runs.append(Run(name, source, next(report)))
            print(f"    answer: {' '.join(runs[-1].result['text'].split())} …")
            say(f"engine {name}: killed")
        print_table(runs)
        print_objects(gateway, runs[0].result["space"], folder)
        check(runs)


def prepare(model: Path) -> None:
    process = subprocess.Popen([sys.executable, str(HERE / "model.py"), str(model)], start_new_session=True)
    try:
        if process.wait():
            fail("the model could not be prepared")
    finally:
        process.terminate()  # it removes what it has begun
        process.wait()


@contextmanager
def engine(gateway: Gateway, model: Path, question: str) -> Iterator[Iterator[dict[str, Any]]]:
    """An engine process, and the results that it reports. It is killed at the end."""
    arguments = [str(model), gateway.url, BUCKET, str(DOCUMENT), question]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "engine.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=gateway.environment,
        start_new_session=True,  # an interrupt from the terminal is for this process to handle
    )
    try:
        yield results(process)
    finally:
        process.kill()
        process.communicate()


def results(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        if "progress" in message:
            say(f"    {message['progress']}")
        else:
            yield message["result"]
    fail(f"an engine ended with status {process.wait()}")


def print_table(runs: list[Run]) -> None:
    columns = (
        "engine",
        "KV from",
        "tokens",
        "reused",
        "TTFT recomputed",
        "TTFT cached",
        "ratio",
        "loaded",
        "stored",
        "text",
    )
    rows = [
        (
            run.name,
            run.source,
            f"{run.result['asked_tokens']:,}",
            f"{run.result['reused_tokens']:,}",
            f"{run.result['recomputed_ttft_s']:.2f} s",
            f"{run.result['ttft_s']:.2f} s",
            f"{run.ratio:.3f}",
            megabytes(run.result["loaded_nbytes"]),
            megabytes(run.result["stored_nbytes"]),
            "same" if run.result["same_text"] else "DIFFERENT",
        )
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    print()
    for row in (columns, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print("\nTTFT: time to the first token. Both ways in the same process, from the same token ids.\n")


def print_objects(gateway: Gateway, space: str, folder: Path) -> None:
    """The chunks as any S3 tool sees them, and one of them as any safetensors reader does."""
    listing = aws(gateway, "s3", "ls", f"s3://{BUCKET}/", "--recursive", "--summarize").splitlines()
    objects, summary = listing[:-3], listing[-2:]
    print("\n".join([*objects[:LISTED_OBJECTS], f"… {len(objects) - LISTED_OBJECTS} more", *summary]))
    key = next(line.split()[-1] for line in objects if not line.endswith("manifest.json"))
    chunk = folder / "chunk.safetensors"
    aws(gateway, "s3", "cp", "--only-show-errors", f"s3://{BUCKET}/{key}", str(chunk))
    print(f"\n$ aws s3 cp s3://{BUCKET}/kv/{space[:8]}…/{key[-64:-56]}… chunk.safetensors")
    with safe_open(chunk, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            tensor = file.get_tensor(name)
            print(f"{name}: {tensor.dtype} {list(tensor.shape)}  (layers, K and V, heads, tokens, head_dim)")
        for name, value in sorted(file.metadata().items()):
            print(f"    {name}: {value}")


def aws(gateway: Gateway, *arguments: str) -> str:
    """The output of the real aws-cli."""
    if arguments[1] == "ls":
        print(f"$ aws {' '.join(arguments)}")
    program = Path(sys.executable).with_name("aws")
    done = subprocess.run(
        [str(program), *arguments], env=gateway.environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def check(runs: list[Run]) -> None:
    faults = []
    for run in runs:
        if not run.result["same_text"]:
            faults.append(f"engine {run.name} said something else with the gateway than without")
        if not run.result["all_stored"]:
            faults.append(f"engine {run.name} could not store every chunk")
    for run in runs[1:]:
        if not run.result["reused_tokens"]:
            faults.append(f"engine {run.name} reused nothing: {run.result['miss']}")
        elif run.ratio > LARGEST_RATIO:
            faults.append(
                f"engine {run.name} had its first token after {run.ratio:.3f} of the time, not {LARGEST_RATIO}"
            )
    if faults:
        fail("\n".join(faults))


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def say(what: str) -> None:
    print(f"{time.monotonic() - _start_s:6.1f} s  {what}", flush=True)


def fail(why: str) -> NoReturn:
    sys.exit(f"\nkvgate demo: {why}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
