"""The model's store does what the in-memory journal does: random walks of the model, step by step on both."""

from __future__ import annotations

import random

import pytest
from attrs import evolve

from atomic_actors.journal._protocol import Settled
from tests.model.actions import Actions, Label
from tests.model.configurations import CONFIGURATIONS, Configuration
from tests.model.journal_steps import Translation
from tests.model.states import Draft, Step, StepKind, read_step

pytestmark = pytest.mark.anyio

WALKS = 60
WALK_ACTIONS = 80
FAULT_SHARE = 0.2

#: The words of labels in which the store does a step.
STEPS_DONE = ("answered", "answer lost", "arrives late")
APPENDS = ("appends", "append arrives again", "append without answer")


def steps_of(actions: Actions, state: bytes, label: Label) -> list[Step]:
    """What the store did in an action, in order."""
    word, *rest = label
    numbers = [item for item in rest if isinstance(item, int)]
    if word in STEPS_DONE:
        kind, where, message, turn, claim, first, second, third = numbers[-8:]
        return [(kind, where, message, turn, claim, first, second, third)]
    if word in APPENDS:
        return [(StepKind.APPEND, 0, numbers[0] + 1, 0, 0, 0, 0, 0)]
    if word == "fails over":
        return [read_step(state, place) for place in actions.shape.sent_steps if state[place]]
    return []


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name)
async def test_the_store_is_the_journal(configuration: Configuration) -> None:
    actions = Actions(evolve(configuration, faults=8, releases=2))
    translation = Translation(actions)
    seen: set[StepKind] = set()
    for seed in range(WALKS):
        draw = random.Random(seed)
        state = actions.shape.first()
        async with translation.new_journal() as journal:
            for _ in range(WALK_ACTIONS):
                ways = actions.faults(state) if draw.random() < FAULT_SHARE else []
                ways = ways or actions.moves(state)
                if not ways:
                    break
                label, after = draw.choice(ways)
                draft = Draft(state)
                for step in steps_of(actions, state, label):
                    seen.add(StepKind(step[0]))
                    expected = translation.expected(actions.store.execute(draft, step))
                    (result,) = (await journal.execute([translation.step(step)])).results
                    answered = translation.answered(result)
                    # What was settled is told again as it was; a node does not care.
                    assert answered == expected or isinstance(result, Settled), (label, result)
                if label[0] == "withdraws" and isinstance(label[1], int):
                    await journal.execute([translation.withdraw(label[1])])
                assert translation.stored(journal) == translation.modelled(after), (seed, label)
                state = after
    wanted = {StepKind.TAKE, StepKind.FINISH, StepKind.INTERRUPT, StepKind.CLAIM_PARTITION, StepKind.RELEASE}
    assert wanted <= seen
