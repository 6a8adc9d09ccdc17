"""Histories made by chance: good ones are left alone, spoiled ones are not."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.testing.checkers._checkers import RULES, check_history
from atomic_actors.testing.checkers._history import Began, Fault, History, PutBack, Sent
from tests.checkers.mutations import MUTATIONS, spoil
from tests.checkers.random_story import RandomStory

#: How many seeds a spoiled place is looked for, until one is found.
SEEDS_MAX = 50


def good_history(chance: Random, steps: int) -> History:
    return RandomStory(chance).tell(steps).history


@given(chance=st.randoms(use_true_random=False), steps=st.integers(0, 80), cut=st.floats(0, 1))
def test_a_good_history_is_left_alone(chance: Random, steps: int, cut: float) -> None:
    history = good_history(chance, steps)
    assert check_history(history, healed=True) == []
    # Whatever is cut off, what is there is not wrong. The parts of a step stay together.
    records = history.records
    end = int(cut * len(records))
    while 0 < end < len(records) and records[end].at_s == records[end - 1].at_s:
        end += 1
    assert check_history(History(records[:end]), healed=False) == []


def spoiled_history(name: str, base_seed: int) -> History:
    mutation, _ = MUTATIONS[name]
    for seed in range(base_seed, base_seed + SEEDS_MAX):
        chance = Random(seed)
        spoiled = spoil(good_history(chance, 60).records, mutation, chance)
        if spoiled is not None:
            return History(spoiled)
    raise AssertionError(f"{name}: {SEEDS_MAX} histories have no place for it")


@pytest.mark.parametrize("name", MUTATIONS)
@given(base_seed=st.integers(0, 1_000_000))
def test_a_spoiled_history_is_noticed(name: str, base_seed: int) -> None:
    found = check_history(spoiled_history(name, base_seed), healed=True)
    assert MUTATIONS[name][1] in {violation.rule for violation in found}


def test_every_rule_has_a_mutation() -> None:
    assert {rule for _, rule in MUTATIONS.values()} == set(RULES)


def test_random_histories_have_everything() -> None:
    records = [record for seed in range(20) for record in good_history(Random(seed), 80).records]
    assert {type(record) for record in records} >= {Fault, PutBack, Sent, Began}
    assert len({record.what for record in records if isinstance(record, Fault)}) == 2
