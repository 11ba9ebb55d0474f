"""A language model and a tokenizer that are made in milliseconds, with every part that a space names."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHUNK_TOKENS = 8
VOCABULARY = 96


def tiny_config(**changes: Any) -> LlamaConfig:
    """Two layers, four heads over two KV heads of 16."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return LlamaConfig(**(values | changes))


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A Llama with random weights; the same arguments give the same weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(**changes)).to(dtype).eval()


def tiny_tokenizer(first: int = 32) -> Any:
    """One token a printable character; another `first` gives another vocabulary."""
    vocabulary = {chr(first + index): index for index in range(VOCABULARY)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=chr(first)))
    backend.pre_tokenizer = Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def prompt(seed: int, tokens: int) -> list[int]:
    """Token ids that no other seed gives."""
    return torch.randint(0, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(model: Any, tokens: list[int], new_tokens: int) -> list[int]:
    """What the model says by itself."""
    ids = torch.tensor([tokens])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
    )
    return output[0, len(tokens) :].tolist()
