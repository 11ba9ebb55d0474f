"""LoRA adapters in the space, with the real peft."""

# ruff: noqa: E402  (nothing of this file can be imported without torch and peft)
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from engine_adapters.transformers import KVGateCache
from engine_adapters.transformers.space import LiveSpace
from kvgate.errors import UnsupportedModel
from tests.engine_adapters.tiny import CHUNK_TOKENS, greedy, prompt, tiny_model, tiny_tokenizer
from tests.gateways import ALPHA, RunningGateway

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # of peft
]


def lora(**changes: Any) -> Any:
    values = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"], "init_lora_weights": False}
    return peft.LoraConfig(**(values | changes))


def with_adapter(seed: int = 7, name: str = "default", **changes: Any) -> Any:
    base = tiny_model()
    torch.manual_seed(seed)
    return peft.get_peft_model(base, lora(**changes), adapter_name=name).eval()


def live(model: Any) -> LiveSpace:
    return LiveSpace(model, tiny_tokenizer(), model_name="tiny")


def test_an_adapter_changes_the_lora_field_alone() -> None:
    assert live(with_adapter()).now().difference(live(tiny_model()).now()) == ["lora"]


def test_the_same_adapter_under_another_name_is_the_same_space() -> None:
    assert live(with_adapter(name="default")).now() == live(with_adapter(name="other")).now()


@pytest.mark.parametrize("changes", [{"seed": 8}, {"lora_alpha": 9}, {"target_modules": ["q_proj"]}], ids=str)
def test_weights_scaling_and_layers_of_an_adapter_count(changes: dict[str, Any]) -> None:
    assert live(with_adapter(**changes)).now().difference(live(with_adapter()).now()) == ["lora"]


def test_a_live_space_follows_the_active_adapter() -> None:
    model = with_adapter()
    space = live(model)
    first = space.now()
    torch.manual_seed(9)
    model.add_adapter("second", lora())
    assert space.now() == first
    model.set_adapter("second")
    second = space.now()
    assert second.difference(first) == ["lora"]
    model.set_adapter("default")
    assert space.now() == first
    with model.disable_adapter():
        assert space.now() == live(tiny_model()).now()
    with torch.no_grad():
        model.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight").add_(1)
    assert space.now() not in (first, second)


def test_an_adapter_that_takes_the_place_of_a_deleted_one_is_another() -> None:
    model = with_adapter()
    space = live(model)
    spaces = {space.now().id}
    for seed in range(10, 20):
        model.delete_adapter("default")
        torch.manual_seed(seed)
        model.add_adapter("default", lora())
        model.set_adapter("default")
        spaces.add(space.now().id)
    assert len(spaces) == 11


def test_an_adapter_merged_into_the_weights_is_refused() -> None:
    model = with_adapter()
    space = live(model)
    model.merge_adapter()
    with pytest.raises(UnsupportedModel, match="merged"):
        space.now()
    model.unmerge_adapter()


def test_an_adapter_does_not_get_the_kv_of_the_model_without_it(gateway: RunningGateway) -> None:
    model, tokens = with_adapter(seed=20), prompt(20, 4 * CHUNK_TOKENS + 1)
    with KVGateCache(
        model,
        tiny_tokenizer(),
        url=gateway.url,
        bucket="alpha-bucket",
        access_key=ALPHA.access_key,
        secret_key=ALPHA.secret_key,
        chunk_tokens=CHUNK_TOKENS,
        load_deadline_s=10.0,
    ) as cache:
        with model.disable_adapter():
            cache.generate(tokens, max_new_tokens=1, do_sample=False)
            assert cache.flush(20)
        for reused in (0, 4 * CHUNK_TOKENS):
            result = cache.generate(tokens, max_new_tokens=4, do_sample=False)
            assert cache.flush(20)
            assert result.stats.reused_tokens == reused
            assert result.token_ids == greedy(model, tokens, 4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "virtual tokens"),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "only LoRA"),
        (lora(modules_to_save=["lm_head"]), "replaces"),
        (lora(use_dora=True), "variant"),
    ],
    ids=["prompt tuning", "IA3", "saved modules", "DoRA"],
)
def test_whatever_else_peft_does_is_refused(config: Any, reason: str) -> None:
    model = peft.get_peft_model(tiny_model(), config).eval()
    with pytest.raises(UnsupportedModel, match=reason):
        live(model)
