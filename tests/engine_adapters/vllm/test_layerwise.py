"""The gate of a layer-wise load: a step passes it with the layer, or with the news that it does not come."""

from __future__ import annotations

import threading

import pytest

from engine_adapters.vllm.layerwise import LayerGate

LIMIT_S = 60.0


def test_a_layer_that_is_there_is_not_waited_for() -> None:
    gate, told = LayerGate([2, 1]), []
    gate.open(0, 1)
    gate.wait(0, 0, LIMIT_S, lambda: told.append("stalled"))
    assert not told


def test_a_step_that_waits_for_too_long_ends_the_load_which_then_writes_no_more() -> None:
    gate, told = LayerGate([2]), []
    gate.wait(0, 0, 0, lambda: told.append("stalled"))
    gate.wait(0, 1, LIMIT_S, lambda: told.append("again"))
    gate.end(lambda: told.append("the load itself"))
    assert told == ["stalled"]
    with gate.writing() as may_write:
        assert not may_write


def test_nobody_passes_before_the_end_of_the_load_is_told() -> None:
    """Neither who waits, nor who has waited for too long at that very moment."""
    for patience_s in (LIMIT_S, 0.0):
        gate, begun, may_end, passed = LayerGate([1]), threading.Event(), threading.Event(), threading.Event()
        told: list[str] = []

        def tell(begun: threading.Event = begun, may_end: threading.Event = may_end, told: list[str] = told) -> None:
            begun.set()
            may_end.wait(LIMIT_S)
            told.append("failed")

        def step(
            gate: LayerGate = gate, told: list[str] = told, passed: threading.Event = passed, s: float = patience_s
        ) -> None:
            gate.wait(0, 0, s, lambda: told.append("stalled"))
            told.append("passed")
            passed.set()

        load = threading.Thread(target=gate.end, args=(tell,))
        load.start()
        assert begun.wait(LIMIT_S)
        waiting = threading.Thread(target=step)
        waiting.start()
        assert not passed.wait(0.05)
        may_end.set()
        load.join()
        waiting.join()
        assert told == ["failed", "passed"]


def test_a_report_that_fails_lets_nobody_wait_for_ever() -> None:
    gate = LayerGate([1])

    def fail() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError):
        gate.end(fail)
    gate.wait(0, 0, LIMIT_S, fail)
