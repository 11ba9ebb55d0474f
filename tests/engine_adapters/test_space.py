"""Which models have a space, and what makes two spaces differ."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from engine_adapters.transformers.space import LiveSpace, tokenizer_digest
from kvgate.chunk.space import Space
from kvgate.errors import InvalidManifest, UnsupportedModel
from tests.engine_adapters.tiny import tiny_config, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.engine


def space_of(model: Any, tokenizer: Any = None, **options: Any) -> Space:
    return LiveSpace(model, tokenizer or tiny_tokenizer(), **options).now()


def test_the_space_says_what_the_model_caches() -> None:
    space = space_of(tiny_model(dtype=torch.bfloat16), chunk_tokens=16)
    assert space.layout.shape == (2, 2, 2, 16, 16)
    assert (space.dtype, space.attention, space.lora, space.multimodal) == ("BF16", "gqa", "none", "none")
    assert space.model == "llama/LlamaForCausalLM"
    assert dict(space.rope) == {"rope_type": "default", "rope_theta": 10000}


@pytest.mark.parametrize(("kv_heads", "attention"), [(4, "mha"), (2, "gqa"), (1, "mqa")])
def test_the_attention_kind_follows_from_the_heads(kv_heads: int, attention: str) -> None:
    assert space_of(tiny_model(num_key_value_heads=kv_heads)).attention == attention


def test_a_saved_model_has_the_same_space_wherever_it_lies(tmp_path: Path) -> None:
    model = tiny_model()
    spaces = {space_of(model, model_name="tiny").id}
    for name in ("here", "there"):
        model.save_pretrained(tmp_path / name)
        spaces.add(space_of(AutoModelForCausalLM.from_pretrained(tmp_path / name), model_name="tiny").id)
    assert len(spaces) == 1


@pytest.mark.parametrize("tensor", [name for name, _ in tiny_model().named_parameters()])
def test_every_weight_counts(tensor: str) -> None:
    model = tiny_model()
    before = space_of(model)
    with torch.no_grad():
        flat = model.get_parameter(tensor).view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
    assert space_of(model).difference(before) == ["weights"]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"rms_norm_eps": 1e-5}, {"weights"}),
        ({"hidden_act": "gelu"}, {"weights"}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, {"weights", "rope"}),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, {"weights", "rope"}),
    ],
    ids=["epsilon", "activation", "rope theta", "rope kind"],
)
def test_the_same_weights_in_another_arithmetic_are_another_space(changes: dict[str, Any], fields: set[str]) -> None:
    assert set(space_of(tiny_model(**changes)).difference(space_of(tiny_model()))) == fields


def test_tokenizer_dtype_name_and_chunk_size_count() -> None:
    base = space_of(tiny_model())
    assert space_of(tiny_model(), tiny_tokenizer(first=33)).difference(base) == ["tokenizer"]
    assert "dtype" in space_of(tiny_model(dtype=torch.float16)).difference(base)
    assert space_of(tiny_model(), model_name="tiny").difference(base) == ["model"]
    assert space_of(tiny_model(), chunk_tokens=64).difference(base) == ["chunk_tokens"]


def test_what_calls_change_in_a_tokenizer_does_not_count() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_digest(tokenizer) == before


def test_a_tokenizer_without_a_serialised_form_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no serialised form"):
        tokenizer_digest(object())


def test_weights_that_the_caller_vouches_for_hold_until_they_change() -> None:
    model = tiny_model()
    live = LiveSpace(model, tiny_tokenizer(), weights="revision-7")
    assert live.now().weights == "revision-7"
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert len(live.now().weights) == 64


@pytest.mark.parametrize("change", ["in place", "replaced", "loaded"])
def test_a_live_space_follows_the_weights(change: str) -> None:
    model = tiny_model(seed=1)
    live = LiveSpace(model, tiny_tokenizer())
    before = live.now()
    assert live.now() is before
    layer = model.model.layers[0].self_attn.k_proj
    if change == "in place":
        with torch.no_grad():
            layer.weight.add_(1)
    elif change == "replaced":
        layer.weight = torch.nn.Parameter(layer.weight.detach() + 1)
    else:
        model.load_state_dict(tiny_model(seed=2).state_dict())
    assert live.now().difference(before) == ["weights"]


def test_an_address_that_is_used_again_is_not_the_same_weight() -> None:
    """Tensors that are made anew, as when a checkpoint replaces another, often come to lie where others were freed."""
    model = tiny_model()
    live = LiveSpace(model, tiny_tokenizer())
    norm = model.model.norm
    spaces = {live.now().id}
    for value in range(2, 51):
        norm.weight = None
        norm.weight = torch.nn.Parameter(torch.full((64,), float(value)))
        spaces.add(live.now().id)
    assert len(spaces) == 50


def test_a_live_space_notices_what_cannot_be_named_any_more() -> None:
    model = tiny_model()
    live = LiveSpace(model, tiny_tokenizer())
    model.train()
    with pytest.raises(UnsupportedModel, match="training"):
        live.now()
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(UnsupportedModel, match="autocast"):
        live.now()
    assert live.now()


SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def sliding_window() -> Any:
    return MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=16))


def hybrid() -> Any:
    return Lfm2ForCausalLM(Lfm2Config(**SMALL, **HEADS, layer_types=["conv", "full_attention"]))


def learned_positions() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4))


def encoder_decoder() -> Any:
    return T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=64, d_ff=64, num_layers=1, num_heads=4))


def latent_attention() -> Any:
    config = DeepseekV3Config(
        **SMALL,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        first_k_dense_replace=2,
    )
    return DeepseekV3ForCausalLM(config)


def multimodal() -> Any:
    vision = SiglipVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=tiny_config(), vision_config=vision))


def length_dependent_rope() -> Any:
    return tiny_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})


def not_causal() -> Any:
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def offloaded() -> Any:
    model = tiny_model()
    model.lm_head = torch.nn.Linear(64, 96, bias=False, device="meta")
    return model


def of_double_precision() -> Any:
    return tiny_model(dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (sliding_window, "DynamicSlidingWindowLayer"),
        (hybrid, "LinearAttentionLayer"),
        (learned_positions, "rope"),
        (encoder_decoder, "encoder-decoder"),
        (latent_attention, "V of layer 0"),
        (multimodal, "multimodal"),
        (length_dependent_rope, "dynamic"),
        (not_causal, "not causal"),
        (offloaded, "several devices"),
        (of_double_precision, "float64"),
    ],
)
def test_a_model_whose_kv_cannot_be_named_is_refused(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        space_of(make().eval())


def test_a_chunk_size_that_no_space_can_have_is_refused() -> None:
    with pytest.raises(InvalidManifest, match="chunk_tokens"):
        space_of(tiny_model(), chunk_tokens=0)
