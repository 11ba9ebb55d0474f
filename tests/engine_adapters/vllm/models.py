"""Makes the small models with random weights that the tests run in vLLM.

    models.py FOLDER TOKENIZER

Runs in the environment that `.ci/vllm` makes. Each model has the tokenizer of the folder TOKENIZER, is saved in
bfloat16 and loads in a second. The weights are large enough that attention decides what comes next: KV of another
prompt shows as other tokens.

| folder | what it is |
|---|---|
| tiny-llama | grouped-query attention; 4 KV heads, so that two or four ranks share them |
| tiny-mla | multi-head latent attention as in DeepSeek V2; 512 + 64 is all that vLLM's kernel for the CPU has |
| tiny-sliding | a window of 64 tokens in every other layer, as in Gemma 3: two groups of KV caches |
| lora/one/style, lora/two/style | two adapters of one name for tiny-llama, which change its KV |
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WINDOW = 4, 128, 8, 4, 64, 64
LORA_RANK = 8


def common(tokenizer: Any) -> dict[str, Any]:
    """What all models have."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,  # or the next token would mostly be the last one again
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }


def make_llama(tokenizer: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, **common(tokenizer)))


def make_mla(tokenizer: Any) -> Any:
    shape = {"kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
    dense = {
        "first_k_dense_replace": LAYERS,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
    }
    return DeepseekV2ForCausalLM(DeepseekV2Config(num_key_value_heads=HEADS, **shape, **dense, **common(tokenizer)))


def make_sliding(tokenizer: Any) -> Any:
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            query_pre_attn_scalar=HEAD_DIM,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
            **common(tokenizer),
        )
    )


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_lora(seed: int, folder: Path) -> None:
    """An adapter of queries, keys and values, in peft's format."""
    shapes = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, out in shapes.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(LORA_RANK, HIDDEN, generator=generator) * 0.2
            tensors[f"{module}.lora_B.weight"] = torch.randn(out, LORA_RANK, generator=generator) * 0.2
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": LORA_RANK, "target_modules": list(shapes)}
    defaults = {"bias": "none", "task_type": "CAUSAL_LM", "use_rslora": False, "use_dora": False}
    (folder / "adapter_config.json").write_text(
        json.dumps(config | defaults | {"base_model_name_or_path": "tiny-llama"})
    )


def main(folder: Path, tokenizer_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    makers = {"tiny-llama": make_llama, "tiny-mla": make_mla, "tiny-sliding": make_sliding}
    for seed, (name, make) in enumerate(makers.items()):
        shutil.rmtree(folder / name, ignore_errors=True)
        torch.manual_seed(seed)
        save(make(tokenizer), tokenizer, folder / name)
    for seed, name in enumerate(("one", "two")):
        save_lora(seed, folder / "lora" / name / "style")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
