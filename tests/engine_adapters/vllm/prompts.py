"""Prompts for vLLM: token ids that look like nothing, so that two of them share what the test says, and no more."""

from __future__ import annotations

import random

FIRST, LAST = 100, 40_000
"""Ordinary tokens of the models' tokenizer."""


def prompt(seed: object, tokens: int) -> list[int]:
    """Token ids that no other seed gives; a longer prompt of the same seed begins with a shorter one."""
    generator = random.Random(repr(seed))
    return [generator.randrange(FIRST, LAST) for _ in range(tokens)]
