"""What each codec of chunks does to a model's answers, to the bytes of its KV, and how fast it is.

    OMP_NUM_THREADS=1 python loadtest/codec_quality.py --windows 8

Quality: SmolLM2-135M-Instruct (prepared once by examples/demo/model.py) reads 1,024 tokens of Python's own reference,
its KV goes through the codec there and back, and the next tokens of the text are read on top of it. Compared with the
same on KV that went through no codec: KL divergence of the distributions of the next token, perplexity, and how often
the likeliest token is the same. The KV is BF16, as most engines keep it; the model computes in float32.

Speed: GB of KV in its own dtype a second of the CPU time of one thread, beside a memcpy of the same bytes in the same
run. Lossy codecs have two figures: with the quantisers of NumPy, and with those of torch.

Prints the table of docs/codecs.md. Needs what examples/demo/requirements.txt names.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from engine_adapters import torch_quantise
from engine_adapters.transformers.probe import CACHE_OPTION
from engine_adapters.transformers.space import LiveSpace
from kvgate.chunk.form import LOSSY_GROUP, RAW
from kvgate.chunk.layout import DATA_START
from kvgate.chunk.space import Space
from kvgate.codec.chunk_body import decode_body, encode_body
from kvgate.codec.installed import installed_names
from kvgate.kernels import quantise
from kvgate.plugins import names

REPOSITORY = Path(__file__).resolve().parent.parent
MODEL = REPOSITORY / ".cache" / "models" / "smollm2-135m-instruct-f32"
CHUNK_TOKENS = 256
KINDS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

Through = Callable[[Any], Any]
"""KV [layers, 2, kv_heads, tokens, head_dim] there and back."""


@dataclass
class Quality:
    """Sums over the tokens that were read on top of KV from a codec."""

    kl: float = 0.0
    loss: float = 0.0
    same: int = 0
    tokens: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="prepared when it is not there")
    parser.add_argument("--windows", type=int, default=8, help="of text")
    parser.add_argument("--context", type=int, default=1024, help="tokens whose KV goes through the codec")
    parser.add_argument("--read", type=int, default=128, help="tokens that are read on top of it")
    parser.add_argument("--dtype", choices=KINDS, default="BF16", help="of the KV")
    options = parser.parse_args()
    if not options.model.exists():
        sys.path.append(str(REPOSITORY / "examples" / "demo"))
        import model  # noqa: PLC0415  (only where it is needed)

        model.prepare(options.model)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    space = replace(
        LiveSpace(network, tokenizer, weights="quality", chunk_tokens=CHUNK_TOKENS).now(), dtype=options.dtype
    )
    text = "\n\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    step = (len(tokens) - options.context - options.read - 1) // options.windows

    ways: dict[str, Through] = {name: through_codec(of_codec(space, name)) for name in names(LOSSY_GROUP)}
    ways["(fp8, unit scale)"] = unit_fp8
    qualities = {name: Quality() for name in [RAW, *ways]}
    for window in range(options.windows):
        read = tokens[window * step :][: options.context + options.read + 1]
        kv = measure(network, read, options.context, KINDS[options.dtype], ways, qualities)
        print(f"window {window + 1} of {options.windows}", file=sys.stderr, flush=True)
    chunk = kv[:, :, :, :CHUNK_TOKENS].contiguous()
    print_table(space, chunk, qualities)


def of_codec(space: Space, codec: str) -> Space:
    return replace(space, layout_version=2, codec=codec)


def through_codec(space: Space) -> Through:
    """Chunk by chunk, as chunk objects."""

    def through(kv: Any) -> Any:
        back = torch.empty_like(kv)
        for first in range(0, kv.shape[3], space.chunk_tokens):
            tokens = slice(first, first + space.chunk_tokens)
            out = bytearray(space.layout.nbytes)
            body = body_of(space, kv[:, :, :, tokens].contiguous())
            decode_body(space, body, out, quantisers=torch_quantise)
            back[:, :, :, tokens] = torch.frombuffer(out, dtype=kv.dtype).view(back[:, :, :, tokens].shape)
        return back

    return through


def unit_fp8(kv: Any) -> Any:
    """As engines do it that have no scales: every number cast to e4m3."""
    return kv.float().clamp(-448, 448).to(torch.float8_e4m3fn).to(kv.dtype)


def body_of(space: Space, kv: Any, lossless: str = RAW) -> bytes:
    return b"".join(encode_body(space, bytes(32), bytes(32), 0, memoryview(bytes_of(kv)), lossless=lossless))


def bytes_of(kv: Any) -> Any:
    return kv.view(torch.uint8).numpy().reshape(-1)


def measure(
    network: Any, read: Any, context: int, kind: Any, ways: dict[str, Through], qualities: dict[str, Quality]
) -> Any:
    """Add one window of text to `qualities`. Returns the KV of its context."""
    with torch.inference_mode():
        cache = DynamicCache(config=network.config)
        network(read[None, :context], **{CACHE_OPTION: cache}, use_cache=True, logits_to_keep=1)
        kv = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]).to(kind)
        expected = logits_on(network, kv, read[context:-1])
        add(qualities[RAW], expected, expected, read[context + 1 :])
        for name, through in ways.items():
            add(qualities[name], expected, logits_on(network, through(kv), read[context:-1]), read[context + 1 :])
    return kv


def logits_on(network: Any, kv: Any, tokens: Any) -> Any:
    cache = DynamicCache(config=network.config)
    for index, (keys, values) in enumerate(kv.float()):
        cache.update(keys[None].clone(), values[None].clone(), index)
    return network(tokens[None], **{CACHE_OPTION: cache}, use_cache=True).logits[0].double().log_softmax(-1)


def add(quality: Quality, expected: Any, found: Any, following: Any) -> None:
    quality.kl += float((expected.exp() * (expected - found)).sum())
    quality.loss -= float(found.gather(1, following[:, None]).sum())
    quality.same += int((expected.argmax(-1) == found.argmax(-1)).sum())
    quality.tokens += len(following)


def print_table(space: Space, chunk: Any, qualities: dict[str, Quality]) -> None:
    raw = bytes_of(chunk)
    copy = numpy.empty_like(raw)
    print(f"KV in {space.dtype}; memcpy {pace(raw.nbytes, lambda: numpy.copyto(copy, raw)):.1f} GB/s")
    print("| codec | bytes | KL | perplexity | same top-1 | encode GB/s | decode GB/s |")
    print("|---|---|---|---|---|---|---|")
    plain = qualities[RAW]
    for name in [RAW, *sorted(installed_names()), *names(LOSSY_GROUP), "(fp8, unit scale)"]:
        quality = qualities.get(name, plain)
        cells = [f"`{name}`" if name[0] != "(" else name, "", f"{quality.kl / quality.tokens:.1e}"]
        cells += [f"{numpy.exp(quality.loss / quality.tokens):.3f}", f"{100 * quality.same / quality.tokens:.1f} %"]
        if quality is plain:
            cells[2:] = ["0", cells[3], "100 %"]
        cells += speeds(space, chunk, name, cells) if name[0] != "(" else ["", ""]
        print("| " + " | ".join(cells) + " |")


def speeds(space: Space, chunk: Any, name: str, cells: list[str]) -> list[str]:
    """How fast a chunk is encoded and decoded. Fills its size in."""
    lossless = name if name in installed_names() else RAW
    of = space if name in (RAW, lossless) else of_codec(space, name)
    body = body_of(of, chunk, lossless)
    cells[1] = f"{(len(body) - DATA_START) / space.layout.nbytes:.3f}"
    raw, out = memoryview(bytes_of(chunk)), bytearray(space.layout.nbytes)
    both = (quantise, torch_quantise) if of.codec != RAW else (quantise,)

    def encode(quantisers: Any) -> object:
        return encode_body(of, bytes(32), bytes(32), 0, raw, lossless=lossless, quantisers=quantisers)

    ways = [
        [pace(raw.nbytes, lambda each=each: encode(each)) for each in both],
        [pace(raw.nbytes, lambda each=each: decode_body(of, body, out, quantisers=each)) for each in both],
    ]
    if name == RAW:
        ways[0] = []  # it is not copied
    return [" / ".join(f"{each:.2f}" for each in paces) for paces in ways]


def pace(nbytes: int, do: Callable[[], object], for_s: float = 1.0) -> float:
    """The best of as many times as fit, in GB/s."""
    best_s, end_s = float("inf"), time.perf_counter() + for_s
    while time.perf_counter() < end_s:
        start_s = time.thread_time()
        do()
        best_s = min(best_s, time.thread_time() - start_s)
    return nbytes / best_s / 1e9


if __name__ == "__main__":
    main()
