"""A fuzzer's bytes as choices, so that an input can be built from them; the same bytes give the same input.

When the bytes run out every choice is the first one, so inputs are finite, and short ones are simple.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Takes bytes from the front of an input."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self._data) - self._at

    def below(self, limit: int) -> int:
        """An integer from 0 to `limit` - 1. Takes as many bytes as the largest needs."""
        nbytes = max(1, ((limit - 1).bit_length() + 7) // 8)
        return int.from_bytes(self.take(nbytes), "little") % limit

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def one_in(self, count: int) -> bool:
        """True for about one input in `count`; False when the bytes have run out."""
        return self.below(count) == count - 1

    def take(self, nbytes: int) -> bytes:
        """The next bytes, or as many as there are."""
        taken = self._data[self._at : self._at + nbytes]
        self._at += len(taken)
        return taken

    def some(self, most: int = 255) -> bytes:
        """Up to `most` bytes; their number comes first."""
        return self.take(self.below(most + 1))

    def text(self, most: int = 255) -> str:
        """Text as an HTTP server makes it of a request's bytes: what is not UTF-8 becomes lone surrogates."""
        return self.some(most).decode("utf-8", "surrogateescape")

    def header_value(self, most: int = 255) -> str:
        """Text without the characters that no HTTP server lets through in a header."""
        text = self.text(most)
        return text.translate(_NOT_IN_HEADERS).strip(" \t")

    def rest(self) -> bytes:
        """Everything that has not been taken."""
        return self.take(self.left)


_NOT_IN_HEADERS = dict.fromkeys((*range(9), *range(10, 32), 127))


def random_inputs(count: int, seed: int) -> Iterator[bytes]:
    """Inputs of a few lengths; the same for the same arguments."""
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.randbytes(rng.choice((4, 16, 64, 200)))


def damaged(data: bytes, words: Sequence[bytes], rng: random.Random) -> bytes:
    """`data` with a few bytes or words put in or taken out, here and there."""
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(data) + 1)
        put = rng.choice(words) if words and rng.random() < 0.5 else rng.randbytes(rng.randrange(4))
        data = data[:at] + put + data[at + rng.choice((0, 0, 1, 3)) :]
    return data


def spliced(draw: Draw, text: str, words: Sequence[str]) -> str:
    """`text` with a stretch of a few characters replaced by other text, by one of `words`, or by nothing."""
    at = draw.below(len(text) + 1)
    cut = draw.pick((0, 0, 1, 1, 2, 5, len(text)))
    return text[:at] + (draw.pick(words) if draw.one_in(2) else draw.text(6)) + text[at + cut :]
