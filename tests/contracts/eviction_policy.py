"""The contract of an eviction policy: every one passes it.

A subclass says in `policy` which class it is. The keys are objects that come back as another key of the same name, as
the entries of the store do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvgate.store.eviction.base import EvictionPolicy

NAMES = st.integers(0, 30)


class Key:
    """Compared by identity."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Key({self.name})"


def name_of(key: Key) -> int:
    return key.name


class EvictionPolicyContract:
    policy: Callable[..., EvictionPolicy[Any]]

    def test_keeps_exactly_the_keys_that_it_was_given(self) -> None:
        policy = type(self).policy

        class Machine(PolicyMachine):
            def make(self) -> EvictionPolicy[Key]:
                return policy(name_of)

        run_state_machine_as_test(Machine, settings=settings(max_examples=20, stateful_step_count=50, deadline=None))

    def test_what_is_not_full_admits_everything(self) -> None:
        policy = type(self).policy(name_of)
        assert all(policy.admit(Key(name), full=False) for name in range(100))

    def test_asking_whether_to_admit_changes_nothing(self) -> None:
        policy = type(self).policy(name_of)
        for name in range(10):
            policy.insert(Key(name), 1)
        key = Key(100)
        policy.note(key)
        assert len({policy.admit(key, full=True) for _ in range(5)}) == 1

    def test_a_cache_of_a_thousand_keys_turns_over_in_bounded_memory(self) -> None:
        policy, there = type(self).policy(name_of), set()
        sizes = []
        for name in range(20_000):
            key = Key(name)
            policy.note(key)
            if len(there) == 1000:
                victim = next(iter(policy.victims()))
                policy.evict(victim)
                there.remove(victim)
            policy.insert(key, 1)
            there.add(key)
            if name in (4_999, 19_999):
                sizes.append(deep_nbytes(policy, ignore=there))
        assert sizes[1] < 1.5 * sizes[0], "more is remembered the longer it runs"

    def test_a_key_that_may_not_go_stays_the_first_victim(self) -> None:
        policy = type(self).policy(name_of)
        keys = [Key(name) for name in range(50)]
        for key in keys:
            policy.insert(key, 1)
        first = [key for key, _ in zip(policy.victims(), range(10), strict=False)]
        for key in first[1:]:
            policy.evict(key)
        assert next(iter(policy.victims())) is first[0]


class PolicyMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = self.make()
        self.there: dict[int, Key] = {}

    def make(self) -> EvictionPolicy[Key]:
        raise NotImplementedError

    @rule(name=NAMES)
    def put(self, name: int) -> None:
        if name not in self.there:
            key = self.there[name] = Key(name)
            self.policy.note(key)
            self.policy.insert(key, 1 + name)

    @rule(name=NAMES)
    def use(self, name: int) -> None:
        self.policy.touch(self.there.get(name, Key(name)))

    @rule(name=NAMES)
    def miss(self, name: int) -> None:
        if name not in self.there:
            self.policy.note(Key(name))
            self.policy.admit(Key(name), full=True)

    @rule(names=st.lists(NAMES, unique=True), use=st.booleans())
    def use_chain(self, names: list[int], use: bool) -> None:
        keys = [self.there.get(name, Key(name)) for name in names]
        if use:
            unknown = self.policy.touch_all(keys)
            assert unknown == [key for key in keys if key.name not in self.there]
        else:
            self.policy.arrange(keys)

    @precondition(lambda self: self.there)
    @rule(count=st.integers(1, 5), look=st.booleans())
    def evict(self, count: int, look: bool) -> None:
        if look:
            self.order()
        for victim, _ in list(zip(self.policy.victims(), range(count), strict=False)):
            assert self.there.pop(victim.name) is victim
            self.policy.evict(victim)

    @rule(name=NAMES, gives_way=st.booleans())
    def remove(self, name: int, gives_way: bool) -> None:
        key = self.there.pop(name, Key(name))
        (self.policy.evict if gives_way else self.policy.remove)(key)

    @invariant()
    def knows_what_is_there(self) -> None:
        assert len(self.policy) == len(self.there)
        assert all(key in self.policy for key in self.there.values())
        assert Key(0) not in self.policy

    @rule()
    def order(self) -> None:
        victims = list(self.policy.victims())
        assert sorted(key.name for key in victims) == sorted(self.there)
        assert all(self.there[key.name] is key for key in victims)
        assert list(self.policy.victims()) == victims, "to look has changed the order"


def deep_nbytes(root: object, ignore: set[Key]) -> int:
    """About how many bytes an object and all that it refers to take, classes and functions left out."""
    import sys

    total, todo, seen = 0, [root], set()
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type | Key) or callable(each):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        if isinstance(each, dict):
            todo += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set):
            todo += each
        if hasattr(each, "__dict__"):
            todo.append(vars(each))
        for slot in getattr(type(each), "__slots__", ()):
            todo.append(getattr(each, slot, None))
    return total
