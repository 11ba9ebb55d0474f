"""Keys moved from one position to another, against transformers' own rotary code."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from kvgate.errors import LayoutError, UnsupportedModel
from kvgate.kernels.quantise import ARRAY_DTYPES, narrow, widen
from kvgate.kernels.rerotate import frequencies, rerotate, rotation

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HEAD_DIM, TOKENS = 64, 16
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4096}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 8192},
    "yarn": YARN,
    "yarn of DeepSeek": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1, "factor": 40.0},
    "yarn that is not truncated": {**YARN, "truncate": False, "beta_fast": 16, "beta_slow": 2},
    "yarn with a factor of attention": {**YARN, "attention_factor": 0.7},
    "linear and partial": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.5},
    "llama3 and partial": {**LLAMA3, "original_max_position_embeddings": 8192, "partial_rotary_factor": 0.25},
}
each_rope = pytest.mark.parametrize("name", ROPES)


def rotary(name: str) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        head_dim=HEAD_DIM,
        max_position_embeddings=16384,
        rope_parameters=dict(ROPES[name]),
    )
    return transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)


def keys_at(name: str, states: np.ndarray, first: int) -> np.ndarray:
    """What transformers makes of the keys of hidden states (…, TOKENS, HEAD_DIM) from position `first` on."""
    embedding = rotary(name)
    keys = torch.from_numpy(states)
    cosines, sines = embedding(keys, torch.arange(first, first + TOKENS)[None])
    rotated = cosines.shape[-1]
    _, moved = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(
        keys[None, ..., :rotated], keys[None, ..., :rotated], cosines, sines
    )
    return torch.cat([moved[0], keys[..., rotated:]], -1).numpy()


def states(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, TOKENS, HEAD_DIM)).astype(np.float32)


@each_rope
def test_frequencies_are_those_of_transformers(name: str) -> None:
    expected = rotary(name).inv_freq.numpy()
    found = frequencies(ROPES[name], HEAD_DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=4e-7)


@each_rope
@pytest.mark.parametrize(("before", "after"), [(0, 256), (512, 256), (3, 4), (1000, 1000), (0, 4000)])
def test_a_moved_key_is_the_one_that_transformers_makes_there(name: str, before: int, after: int) -> None:
    move = rotation(frequencies(ROPES[name], HEAD_DIM), after - before)
    keys, expected = keys_at(name, states(), before), keys_at(name, states(), after)
    out = np.empty_like(keys)
    rerotate(keys, "F32", move, out)
    # transformers works angles out in float32: at position 4,000 they are off by up to 2.4e-4.
    np.testing.assert_allclose(out, expected, atol=2e-3 if 4000 in (before, after) else 4e-4)
    rotated = 2 * len(move.cosines)
    np.testing.assert_array_equal(out[..., rotated:], keys[..., rotated:])


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_there_and_back_is_the_same_but_for_rounding(dtype: str) -> None:
    keys = np.empty((2, TOKENS, HEAD_DIM), ARRAY_DTYPES[dtype])
    narrow(states(), dtype, keys)
    there, back = np.empty_like(keys), keys.copy()
    turns = frequencies(ROPES["llama3"], HEAD_DIM)
    rerotate(keys, dtype, rotation(turns, 12345), there)
    rerotate(there, dtype, rotation(turns, -12345), back)
    step = {"F32": 1e-6, "BF16": 2**-7, "F16": 2**-10}[dtype]
    np.testing.assert_allclose(widen(back, dtype), widen(keys, dtype), atol=4 * step)


def test_no_move_keeps_every_bit_and_may_be_made_in_place() -> None:
    keys = np.random.default_rng(0).integers(0, 0x7F00, (3, TOKENS, HEAD_DIM), dtype=np.uint16)
    turns = frequencies(ROPES["default"], HEAD_DIM)
    still, moved, in_place = np.empty_like(keys), np.empty_like(keys), keys.copy()
    rerotate(keys, "BF16", rotation(turns, 0), still)
    np.testing.assert_array_equal(still, keys)
    rerotate(keys, "BF16", rotation(turns, 7), moved)
    rerotate(in_place, "BF16", rotation(turns, 7), in_place)
    np.testing.assert_array_equal(in_place, moved)
    assert (moved != keys).any()


def test_interleaved_pairs_are_the_halves_in_another_order() -> None:
    """As in the rotated part of DeepSeek's latent, which comes last."""
    turns = frequencies(ROPES["default"], HEAD_DIM)
    keys = states()
    latent = np.concatenate([states(1), keys], -1)
    order = np.arange(HEAD_DIM).reshape(2, -1).T.ravel()
    apart, together = np.empty_like(keys), np.empty_like(latent)
    rerotate(keys, "F32", rotation(turns, 9), apart)
    latent[..., HEAD_DIM:] = keys[..., order]
    rerotate(latent, "F32", rotation(turns, 9, first=HEAD_DIM, interleaved=True), together)
    np.testing.assert_array_equal(together[..., HEAD_DIM:], apart[..., order])
    np.testing.assert_array_equal(together[..., :HEAD_DIM], latent[..., :HEAD_DIM])


def test_a_far_move_is_as_exact_as_a_near_one() -> None:
    turns = frequencies(ROPES["default"], HEAD_DIM)
    far, keys = 10_000_000, states()
    out = np.empty_like(keys)
    rerotate(keys, "F32", rotation(turns, far), out)
    angles = turns.astype(np.float64) * far
    a, b = keys[..., :32].astype(np.float64), keys[..., 32:].astype(np.float64)
    np.testing.assert_allclose(out[..., :32], a * np.cos(angles) - b * np.sin(angles), atol=1e-6)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "dynamic"),
        ({"rope_type": "longrope", "rope_theta": 1e4}, "longrope"),
        ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}, "original_max_position_embeddings"),
        ({}, "rope_theta"),
    ],
)
def test_what_cannot_be_moved_is_refused(rope: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        frequencies(rope, HEAD_DIM)


def test_more_channels_than_a_head_has_are_refused() -> None:
    with pytest.raises(LayoutError, match="96"):
        move = rotation(frequencies(ROPES["default"], HEAD_DIM), 1, first=32)
        rerotate(states(), "F32", move, states())


def test_golden_bits() -> None:
    keys = np.random.default_rng(35).integers(0, 0x7F00, (2, 5, HEAD_DIM), dtype=np.uint16)
    generator = np.random.default_rng(36)
    cosines, sines = (generator.uniform(-1, 1, HEAD_DIM // 2).astype(np.float32) for _ in range(2))
    move = rotation(np.zeros(HEAD_DIM // 2, np.float32), 0)
    digest = hashlib.sha256()
    for interleaved in (False, True):
        out = np.empty_like(keys)
        rerotate(keys, "BF16", type(move)(cosines, sines, 0, interleaved), out)
        digest.update(out.tobytes())
    assert digest.hexdigest() == GOLDEN


GOLDEN = "24ff823b74a0f7757322cdc82d0b5d6b9ccfba810a6db4ecf7ee10b3423c97fe"
"""Of what keys have been moved to since this was first released; the tables themselves depend on the machine's sine."""
