"""One case of each kernel there is: what a GPU's sanitizer runs, and the proof that no kernel is without a test."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from kvgate.chunk.layout import Layout
from kvgate.kernels import source
from kvgate.kernels.paged_copy import Selection
from kvgate.kernels.quantised_copy import Kind
from tests.kernels import test_block_digests, test_paged_copy, test_quantised_copy, test_rotated_scatter
from tests.kernels.on_cpu import kernels_of
from tests.kernels.paged import make_pages

SIZES = {"L": 2, "P": 2, "B": 12, "H": 2, "T": 8}
DTYPES = {"BF16": 2, "F16": 2, "F32": 4}
_ran: set[str] = set()


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device of these tests says what it launched."""
    for module in (test_block_digests, test_paged_copy, test_quantised_copy, test_rotated_scatter):
        made = module.make_device

        def make(made: Any = made) -> Any:
            device = made()
            launch = device.launch

            def watched(kernel: Any, *rest: Any) -> None:
                _ran.add(kernel.function)
                launch(kernel, *rest)

            device.launch = watched
            return device

        monkeypatch.setattr(module, "make_device", make)


@pytest.mark.parametrize("row_nbytes", [32, 24, 12, 6, 5])
def test_bytes_as_they_are(row_nbytes: int) -> None:
    layout = Layout(2, 2, 2, 20, row_nbytes, "U8")
    paged = make_pages("LBPTH", SIZES, row_nbytes)
    test_paged_copy.check_both_ways(random.Random(1), paged, layout, Selection.all_of(layout), 2, 0, holes=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", Kind)
def test_numbers_as_codes(kind: Kind, dtype: str) -> None:
    paged = make_pages("LBPTH", SIZES | {"P": 1}, 80 * DTYPES[dtype])
    test_quantised_copy.fill(paged, dtype, np.random.default_rng(1), "normal")
    test_quantised_copy.check_both_ways(kind, dtype, paged, 20, 2, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_at_other_positions(dtype: str) -> None:
    paged = make_pages("LBPTH", SIZES | {"P": 1}, 64 * DTYPES[dtype])
    test_rotated_scatter.check(dtype, paged, 20, 2, 24, 8, False, 1)


def test_digests() -> None:
    test_block_digests.check([bytes(range(256)) * 5000, b"short"], [5000], 3)


def test_these_were_all_kernels() -> None:
    assert _ran == {kernel for name in source.names() for kernel in kernels_of(name)}
