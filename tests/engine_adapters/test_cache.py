"""Generation with KV from a running gateway."""

# ruff: noqa: E402  (nothing of this file can be imported without torch)
from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import DynamicCache, GenerationConfig

from engine_adapters.transformers import KVGateCache
from engine_adapters.transformers.probe import CACHE_OPTION
from kvgate.client.sync import Client
from kvgate.errors import InvalidManifest, UnsupportedModel
from tests.engine_adapters.tiny import CHUNK_TOKENS, VOCABULARY, greedy, prompt, tiny_model, tiny_tokenizer
from tests.gateways import ALPHA, BETA, RunningGateway

pytestmark = pytest.mark.engine

FLUSH_S = 20.0


def cache_for(model: Any, gateway: RunningGateway, **options: Any) -> KVGateCache:
    values = {
        "url": gateway.url,
        "bucket": "alpha-bucket",
        "access_key": ALPHA.access_key,
        "secret_key": ALPHA.secret_key,
        "chunk_tokens": CHUNK_TOKENS,
        "load_deadline_s": 10.0,
    }
    return KVGateCache(model, tiny_tokenizer(), **(values | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_another_engine_reuses_what_one_computed_and_says_the_same(gateway: RunningGateway, dtype: Any) -> None:
    tokens = prompt(100, 5 * CHUNK_TOKENS + 3)
    alone = greedy(tiny_model(seed=100, dtype=dtype), tokens, 12)
    with cache_for(tiny_model(seed=100, dtype=dtype), gateway) as first:
        cold = first.generate(tokens, max_new_tokens=12, do_sample=False)
        assert first.flush(FLUSH_S)
        assert first.totals().stored_chunks == 6  # five of the prompt, one that ends within what was generated
    with cache_for(tiny_model(seed=100, dtype=dtype), gateway) as second:
        warm = second.generate(tokens, max_new_tokens=12, do_sample=False)
    assert (cold.stats.reused_tokens, cold.stats.computed_tokens) == (0, len(tokens))
    assert (warm.stats.reused_tokens, warm.stats.computed_tokens) == (5 * CHUNK_TOKENS, 3)
    assert warm.stats.loaded_chunks == 5
    assert not warm.stats.miss
    assert cold.token_ids == alone
    assert warm.token_ids == alone
    assert warm.text == cold.text == tiny_tokenizer().decode(alone)


def test_prompts_that_begin_alike_share_their_beginning(gateway: RunningGateway) -> None:
    document, question, other = prompt(1, 4 * CHUNK_TOKENS), prompt(2, 11), prompt(3, 13)
    model = tiny_model(seed=101)
    with cache_for(model, gateway) as cache:
        cache.generate(document + question, max_new_tokens=4, do_sample=False)
        assert cache.flush(FLUSH_S)
        result = cache.generate(document + other, max_new_tokens=4, do_sample=False)
        assert result.stats.reused_tokens == len(document)
        assert result.stats.miss == "the gateway holds 4 of 5 chunks"
        assert result.token_ids == greedy(model, document + other, 4)


def test_generated_tokens_are_reused_by_the_next_turn(gateway: RunningGateway) -> None:
    model, tokens = tiny_model(seed=102), prompt(4, 2 * CHUNK_TOKENS)
    with cache_for(model, gateway) as cache:
        answer = cache.generate(tokens, max_new_tokens=2 * CHUNK_TOKENS + 1, do_sample=False).token_ids
        assert cache.flush(FLUSH_S)
        assert cache.totals().stored_chunks == 4  # the last token generated has no KV
        turn = tokens + answer + prompt(5, 3)
        result = cache.generate(turn, max_new_tokens=4, do_sample=False)
    assert result.stats.reused_tokens == 4 * CHUNK_TOKENS
    assert result.token_ids == greedy(model, turn, 4)


def test_one_token_is_always_computed(gateway: RunningGateway) -> None:
    model, tokens = tiny_model(seed=103), prompt(6, 3 * CHUNK_TOKENS)
    with cache_for(model, gateway) as cache:
        for reused in (0, 2 * CHUNK_TOKENS):
            result = cache.generate(tokens, max_new_tokens=3, do_sample=False)
            assert cache.flush(FLUSH_S)
            assert result.stats.reused_tokens == reused
            assert result.token_ids == greedy(model, tokens, 3)
        assert cache.totals().stored_chunks == 3  # what is there is not sent again


def test_a_prompt_of_less_than_a_chunk_works(gateway: RunningGateway) -> None:
    model = tiny_model(seed=104)
    with cache_for(model, gateway) as cache:
        result = cache.generate([7], max_new_tokens=3, do_sample=False)
    assert result.token_ids == greedy(model, [7], 3)
    assert not result.stats.miss


def test_a_prompt_may_be_text_or_a_tensor(gateway: RunningGateway) -> None:
    text = "the same words as text, list and tensor"
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(text)["input_ids"]
    with cache_for(tiny_model(seed=105), gateway) as cache:
        results = [
            cache.generate(form, max_new_tokens=4, do_sample=False).token_ids
            for form in (text, tokens, torch.tensor(tokens), torch.tensor([tokens]))
        ]
        assert all(result == results[0] for result in results)
        with pytest.raises(ValueError, match="one prompt"):
            cache.generate(torch.tensor([tokens, tokens]))


def test_the_pad_token_in_a_prompt_is_a_token_like_others(gateway: RunningGateway) -> None:
    model = tiny_model(seed=106)
    model.generation_config.pad_token_id = 3
    model.generation_config.eos_token_id = 5
    tokens = [3] * CHUNK_TOKENS + prompt(7, CHUNK_TOKENS)
    alone = greedy(model, tokens, 4)
    with cache_for(model, gateway) as cache:
        for _ in range(2):
            assert cache.generate(tokens, max_new_tokens=4, do_sample=False).token_ids == alone
            assert cache.flush(FLUSH_S)


def test_chunks_lie_under_their_names_and_open_as_safetensors(gateway: RunningGateway) -> None:
    from safetensors.torch import load

    with cache_for(tiny_model(seed=107), gateway) as cache, client(gateway) as s3:
        cache.generate(prompt(8, 2 * CHUNK_TOKENS), max_new_tokens=1, do_sample=False)
        assert cache.flush(FLUSH_S)
        space = cache.space
        names = [entry.key for entry in s3.list("alpha-bucket", f"kv/{space.id}/")]
        assert len(names) == 3
        assert s3.get("alpha-bucket", f"kv/{space.id}/manifest.json").body == space.canonical_json()
        chunks = [name for name in names if not name.endswith("manifest.json")]
        body = s3.get("alpha-bucket", chunks[0]).body
        assert body is not None
        assert tuple(load(body)["kv"].shape) == space.layout.shape


@pytest.mark.parametrize("codec", ["zstd", "zstd-split", "lz4", "lz4-split"])
def test_a_lossless_codec_is_read_by_engines_with_any_other(gateway: RunningGateway, codec: str) -> None:
    model, tokens = (
        tiny_model(seed=120, dtype=torch.bfloat16),
        prompt(1000 + len(codec) + ord(codec[0]), 5 * CHUNK_TOKENS + 3),
    )
    model.model.layers[0].self_attn.v_proj.weight.data.zero_()  # so that there is something to compress
    alone = greedy(model, tokens, 6)
    with cache_for(model, gateway, codec=codec) as first:
        first.generate(tokens[: 3 * CHUNK_TOKENS + 1], max_new_tokens=1, do_sample=False)
        assert first.flush(FLUSH_S)
        totals = first.totals()
    raw_nbytes = 3 * (4096 + 2 * 2 * 2 * CHUNK_TOKENS * 16 * 2)
    assert totals.stored_chunks == 3
    assert totals.stored_nbytes < raw_nbytes
    with cache_for(model, gateway) as second:
        second.generate(tokens, max_new_tokens=1, do_sample=False)
        assert second.flush(FLUSH_S)
    with cache_for(model, gateway, codec="lz4") as third:
        result = third.generate(tokens, max_new_tokens=6, do_sample=False)
        assert third.space == second.space == first.space
    assert (result.stats.reused_tokens, result.token_ids) == (5 * CHUNK_TOKENS, alone)


@pytest.mark.parametrize("codec", ["int8", "fp8", "k16v8", "k16v8-fp8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_lossy_codec_is_a_space_of_its_own_whose_engines_share(
    gateway: RunningGateway, codec: str, dtype: Any
) -> None:
    model = tiny_model(seed=130, dtype=dtype)
    tokens = [*codec.encode(), *prompt(130, 6 * CHUNK_TOKENS)][: 5 * CHUNK_TOKENS + 3]
    tokens = [token % VOCABULARY for token in tokens]
    with cache_for(model, gateway, codec=codec) as first, cache_for(model, gateway) as exact:
        first.generate(tokens, max_new_tokens=2, do_sample=False)
        assert first.flush(FLUSH_S)
        assert not first.totals().failed_chunks
        with cache_for(model, gateway, codec=codec) as second:
            warm = second.prefill(tokens)
        assert warm.stats.reused_tokens == 5 * CHUNK_TOKENS
        assert exact.space.difference(first.space) == ["layout_version", "codec"]
        alone = exact.prefill(tokens)
        assert alone.stats.reused_tokens == 0, "what is exact does not load what is not"
    loaded = slice(0, 5 * CHUNK_TOKENS)  # how far each codec may be off is its contract's business
    for found, expected in zip(warm.cache.layers, alone.cache.layers, strict=True):
        torch.testing.assert_close(found.keys[:, :, loaded], expected.keys[:, :, loaded], atol=0.4, rtol=0.1)
        torch.testing.assert_close(found.values[:, :, loaded], expected.values[:, :, loaded], atol=0.4, rtol=0.1)


def test_kv_with_nan_is_not_stored_in_a_lossy_codec(gateway: RunningGateway) -> None:
    model = tiny_model(seed=140)
    model.model.embed_tokens.weight.data[50] = float("nan")
    with cache_for(model, gateway, codec="int8") as cache:
        cache.prefill([50, *prompt(140, 3 * CHUNK_TOKENS)])
        assert cache.flush(FLUSH_S)
        totals = cache.totals()
    assert (totals.stored_chunks, totals.failed_chunks) == (0, {"NotFinite": 1})
    assert totals.dropped_chunks == {"a chunk before was not finite": 2}


def test_a_codec_that_is_not_known_is_refused_at_once(gateway: RunningGateway) -> None:
    with pytest.raises(InvalidManifest, match=r"codec.*int8"):
        cache_for(tiny_model(), gateway, codec="int3")


def test_tenants_do_not_share(gateway: RunningGateway) -> None:
    tokens = prompt(9, 3 * CHUNK_TOKENS + 1)
    beta = {"bucket": "beta-bucket", "access_key": BETA.access_key, "secret_key": BETA.secret_key}
    with cache_for(tiny_model(seed=108), gateway) as alpha, cache_for(tiny_model(seed=108), gateway, **beta) as other:
        alpha.generate(tokens, max_new_tokens=1, do_sample=False)
        assert alpha.flush(FLUSH_S)
        assert other.generate(tokens, max_new_tokens=1, do_sample=False).stats.reused_tokens == 0
        assert alpha.generate(tokens, max_new_tokens=1, do_sample=False).stats.reused_tokens == 3 * CHUNK_TOKENS


def test_other_weights_do_not_get_the_kv(gateway: RunningGateway) -> None:
    model, tokens = tiny_model(seed=109), prompt(10, 3 * CHUNK_TOKENS + 1)
    with cache_for(model, gateway) as cache:
        cache.generate(tokens, max_new_tokens=1, do_sample=False)
        assert cache.flush(FLUSH_S)
        with torch.no_grad():
            model.model.layers[0].self_attn.v_proj.weight.mul_(1.5)
        changed = cache.generate(tokens, max_new_tokens=4, do_sample=False)
        assert changed.stats.reused_tokens == 0
        assert changed.token_ids == greedy(model, tokens, 4)


def test_prefill_gives_kv_and_logits_for_a_loop_of_ones_own(gateway: RunningGateway) -> None:
    model, tokens = tiny_model(seed=110), prompt(11, 4 * CHUNK_TOKENS + 2)
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([tokens]), **{CACHE_OPTION: DynamicCache(config=model.config)})
    with cache_for(model, gateway) as cache:
        for reused in (0, 4 * CHUNK_TOKENS):
            result = cache.prefill(tokens)
            result.cache.layers[0].keys.zero_()  # the caller's to change: what is stored was copied before
            assert cache.flush(FLUSH_S)
            assert result.stats.reused_tokens == reused
            torch.testing.assert_close(result.logits, alone.logits[0, -1])
            torch.testing.assert_close(result.cache.layers[1].keys, alone[CACHE_OPTION].layers[1].keys)


def test_stats_add_up(gateway: RunningGateway) -> None:
    tokens = prompt(12, 3 * CHUNK_TOKENS + 1)
    with cache_for(tiny_model(seed=111), gateway) as cache:
        results = []
        for _ in range(2):
            results.append(cache.generate(tokens, max_new_tokens=2, do_sample=False).stats)
            assert cache.flush(FLUSH_S)
        totals = cache.totals()
    body_nbytes = 4096 + 2 * 2 * 2 * CHUNK_TOKENS * 16 * 4
    assert totals.requests == 2
    assert totals.asked_tokens == 2 * len(tokens)
    assert totals.reused_tokens == 3 * CHUNK_TOKENS
    assert totals.asked_tokens == totals.reused_tokens + totals.computed_tokens
    assert totals.stored_nbytes == totals.loaded_nbytes == 3 * body_nbytes
    assert not totals.dropped_chunks
    assert not totals.failed_chunks
    assert all(0 < stats.load_s < stats.ttft_s for stats in results)


def test_the_callers_stopping_criteria_and_streamer_are_heard(gateway: RunningGateway) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: Any) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            pass

    tokens, streamer = prompt(13, CHUNK_TOKENS), Streamer()

    def after_three(sequence: Any, scores: Any, **_: Any) -> Any:
        return torch.full((1,), sequence.shape[1] >= len(tokens) + 3)

    with cache_for(tiny_model(seed=112), gateway) as cache:
        result = cache.generate(
            tokens, max_new_tokens=50, do_sample=False, stopping_criteria=[after_three], streamer=streamer
        )
    assert len(result.token_ids) == 3
    assert streamer.tokens == tokens + result.token_ids


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {CACHE_OPTION: None},
        {"attention_mask": torch.ones(1, 4)},
        {"inputs_embeds": torch.zeros(1, 4, 64)},
        {"pixel_values": torch.zeros(1, 3, 8, 8)},
        {"position_ids": torch.zeros(1, 4)},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": tiny_model()},
        {"token_healing": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_the_chain_hash_does_not_cover_are_refused(
    gateway: RunningGateway, options: dict[str, Any]
) -> None:
    with cache_for(tiny_model(seed=113), gateway) as cache, pytest.raises(UnsupportedModel, match=next(iter(options))):
        cache.generate([1, 2, 3], max_new_tokens=2, **options)


def test_a_refusal_can_come_from_the_models_own_defaults(gateway: RunningGateway) -> None:
    model = tiny_model(seed=114)
    model.generation_config.num_beams = 4
    with cache_for(model, gateway) as cache:
        with pytest.raises(UnsupportedModel, match="num_beams=4"):
            cache.generate([1, 2, 3], max_new_tokens=2)
        with pytest.raises(UnsupportedModel, match="num_beams=4"):
            cache.generate([1, 2, 3], generation_config=GenerationConfig(max_new_tokens=2))
        assert cache.generate([1, 2, 3], max_new_tokens=2, num_beams=1).token_ids


def client(gateway: RunningGateway) -> Client:
    return Client(gateway.url, ALPHA.access_key, ALPHA.secret_key)
