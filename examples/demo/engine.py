"""One engine process of the demo: it answers a question about a document twice, without and with the gateway.

Writes one JSON object a line to its standard output: {"progress": …} on the way, {"result": …} at the end. Then it
waits to be killed, or for the end of its standard input. The key pair comes from the environment, as for any S3 tool.

    python examples/demo/engine.py MODEL URL BUCKET DOCUMENT QUESTION
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine_adapters.transformers import KVGateCache

CHUNK_TOKENS = 64  # small, so that little of a short document is left to compute
NEW_TOKENS = 24
FLUSH_S = 60.0


def main(folder: str, url: str, bucket: str, document: str, question: str) -> None:
    torch.set_num_threads(1)  # so that the ratio does not depend on how many cores there are
    tell(progress="loading the model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{Path(document).read_text()}\n\n{question}"}], add_generation_prompt=True
    )["input_ids"]

    tell(progress="hashing the weights, to name the space")
    with KVGateCache(
        model, tokenizer, url=url, bucket=bucket, model_name="SmolLM2-135M-Instruct", chunk_tokens=CHUNK_TOKENS
    ) as cache:
        # Both ways are warmed up, with a prompt that is too short to be stored.
        warm_up = prompt[: CHUNK_TOKENS // 2]
        recompute(model, warm_up)
        cache.generate(warm_up, max_new_tokens=NEW_TOKENS, do_sample=False)

        tell(progress=f"recomputing {len(prompt)} tokens, without the gateway")
        alone, recomputed_s = recompute(model, prompt)
        tell(progress="the same prompt, with the gateway")
        answer = cache.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
        tell(progress="waiting until the new chunks are stored")
        flushed = cache.flush(FLUSH_S)
        totals = cache.totals()
        tell(
            result={
                **asdict(answer.stats),
                "space": cache.space.id,
                "text": answer.text,
                "same_text": answer.token_ids == alone,
                "recomputed_ttft_s": recomputed_s,
                "stored_chunks": totals.stored_chunks,
                "stored_nbytes": totals.stored_nbytes,
                "all_stored": flushed and not totals.dropped_chunks and not totals.failed_chunks,
            }
        )
        sys.stdin.read()


def recompute(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """What the model generates by itself, and its time to the first token."""
    first_s = 0.0

    def note_first_token(sequence: Any, scores: Any, **_: Any) -> Any:
        nonlocal first_s
        first_s = first_s or time.perf_counter()
        return torch.zeros(1, dtype=torch.bool)

    start_s = time.perf_counter()
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        stopping_criteria=[note_first_token],
    )
    return output[0, len(prompt) :].tolist(), first_s - start_s


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
