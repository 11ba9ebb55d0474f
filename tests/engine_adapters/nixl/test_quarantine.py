from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine_adapters.nixl.quarantine import Quarantine


def test_time_alone_frees_nothing() -> None:
    held: Quarantine[str] = Quarantine()
    held.hold("t", "agent", 3, close_at_s=5.0)
    assert held.to_close(4.9) == set()
    assert held.to_close(1e9) == {"agent"}
    assert held.blocks == 3


def test_confirmed_transfer_comes_out_once() -> None:
    held: Quarantine[str] = Quarantine()
    held.hold("t", "agent", 3, close_at_s=5.0)
    assert held.confirmed("t")
    assert not held.confirmed("t")
    assert held.to_close(9.0) == set()
    assert held.closed("agent") == []


def test_peer_that_dies_while_it_is_waited_for_brings_the_closing_forward() -> None:
    held: Quarantine[str] = Quarantine()
    held.hold("t", "agent", 3, close_at_s=5.0)
    held.hold("t", "agent", 3, close_at_s=1.0)
    held.hold("t", "agent", 3, close_at_s=8.0)
    assert held.to_close(1.0) == {"agent"}
    assert held.closed("agent") == ["t"]


class Machine(RuleBasedStateMachine):
    """Against a plain dict: each transfer comes out once, by its peer's word or by the end of its own agent."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Quarantine[int] = Quarantine()
        self.model: dict[int, tuple[str, int]] = {}

    @rule(number=st.integers(0, 9), agent=st.sampled_from("abc"), blocks=st.integers(1, 9), at=st.floats(0, 100))
    def hold(self, number: int, agent: str, blocks: int, at: float) -> None:
        self.held.hold(number, agent, blocks, at)
        self.model.setdefault(number, (agent, blocks))

    @rule(number=st.integers(0, 9))
    def confirm(self, number: int) -> None:
        assert self.held.confirmed(number) == (self.model.pop(number, None) is not None)

    @rule(agent=st.sampled_from("abc"))
    def close(self, agent: str) -> None:
        free = [number for number, (owner, _) in self.model.items() if owner == agent]
        assert sorted(self.held.closed(agent)) == sorted(free)
        for number in free:
            del self.model[number]

    @invariant()
    def counts(self) -> None:
        assert self.held.transfers == len(self.model)
        assert self.held.blocks == sum(blocks for _, blocks in self.model.values())
        assert self.held.to_close(1e9) == {agent for agent, _ in self.model.values()}


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
