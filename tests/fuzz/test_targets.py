"""Every fuzz target holds for the inputs that once broke it, and for a few hundred new ones. `make fuzz` tries more."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from fuzz import front
from fuzz.draw import damaged, random_inputs
from fuzz.properties import Broken, refusals
from fuzz.saved import kept
from fuzz.targets import TARGETS
from fuzz.targets.base import Target
from kvgate.errors import InvalidRequest, TierError
from tests.gateways import RunningGateway

_INPUTS = 300


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    target = TARGETS[request.param]
    yield target
    target.close()


def test_property_holds_for_inputs_that_once_broke_it(target: Target) -> None:
    for data in kept(target.name):
        target.check(data)


def test_property_holds_for_new_inputs(target: Target) -> None:
    rng = random.Random(target.name)
    for data in random_inputs(_INPUTS, seed=1):
        target.check(data)
        target.check(damaged(rng.choice(target.seeds or (data,)), target.words, rng))


def test_gateway_outlives_bytes_that_are_no_good_http(gateway: RunningGateway) -> None:
    front.check(gateway, [*kept(front.NAME), *random_inputs(_INPUTS, seed=1)])


def test_refusals_let_no_failure_of_the_gateway_pass() -> None:
    with refusals():
        raise InvalidRequest("a caller's mistake")
    for error in (TierError("the gateway's"), ValueError("a defect"), Broken("a finding")):
        with pytest.raises(type(error)), refusals():
            raise error
