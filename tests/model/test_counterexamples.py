"""What is known not to hold, and the shortest way to it.

A store that fails over and forgets what it had acknowledged breaks what the protocol promises; `docs/guarantees.md`
says so. Here the checker has to find how, so that nobody can mistake a checker that is blind for a protocol that
is right.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from msgspec.structs import replace

from atomic_actors.base._lifecycle import State
from atomic_actors.journal._protocol import Sweep, Swept
from tests.model.configurations import Configuration, Fault, Guard, MessageSpec
from tests.model.journal_steps import Translation
from tests.model.protocol import Protocol, render, words
from tests.model.search import Found, search
from tests.model.states import HELD, HELD_EPOCH, RUNS, SENT, STATE, STATES, STATUS, VALID
from tests.model.test_fidelity import steps_of

STATES_MAX = 20_000
PAGE = Path(__file__).parents[2] / "docs" / "model.md"

LOSING = Configuration(
    "a failover that loses what was acknowledged",
    (MessageSpec(),),
    faults=1,
    allowed=frozenset({Fault.LOSING_FAILOVER}),
)
LATE_TAKE = Configuration(
    "a take that arrives late",
    (MessageSpec(), MessageSpec()),
    faults=1,
    allowed=frozenset({Fault.LATE_COPY}),
)


def find(
    configuration: Configuration, invariant: str
) -> tuple[Protocol, Found[bytes, tuple[str | int, ...]]]:
    """The shortest way to break one invariant, also printed."""
    protocol = Protocol(configuration, (invariant,))
    found = search(protocol, states_max=STATES_MAX).found
    assert found is not None
    print(f"{found.what}:", *render(found.trace), sep="\n")
    return protocol, found


def assert_printed(found: Found[bytes, tuple[str | int, ...]]) -> None:
    """The page shows the trace as it is."""
    assert "\n".join(render(found.trace)) in PAGE.read_text(encoding="utf-8")


def test_a_message_runs_twice() -> None:
    protocol, found = find(LOSING, "strictly_once")
    assert words(found.trace) == [
        "client appends",
        "node A sends claim",
        "store replica falls behind",
        "node A answered claim",
        "node A sends take",
        "node A answered take",
        "node A begins",
        "store fails over to the replica",
        "node B sends claim",
        "node B answered claim",
        "node B sends take",
        "node B answered take",
        "node B begins",
    ]
    # Neither node has done anything wrong: both leases are good, and both handlers run.
    shape, (_, last) = protocol.actions.shape, found.trace.steps[-1]
    for node in range(2):
        assert last[shape.holdings[node][0] + VALID]
        assert last[shape.activations[node][0] + STATUS] == RUNS
    assert_printed(found)


def test_an_accepted_message_is_lost() -> None:
    protocol, found = find(LOSING, "nothing_is_lost")
    assert words(found.trace) == [
        "store replica falls behind",
        "client appends",
        "store fails over to the replica",
    ]
    shape, (_, last) = protocol.actions.shape, found.trace.steps[-1]
    assert last[shape.histories[0] + SENT]
    assert STATES[last[shape.messages[0] + STATE]] is State.ABSENT
    assert_printed(found)


def test_two_owners_hold_one_epoch() -> None:
    protocol, found = find(LOSING, "one_owner_an_epoch")
    assert words(found.trace) == [
        "node A sends claim",
        "store replica falls behind",
        "node A answered claim",
        "store fails over to the replica",
        "node B sends claim",
        "node B answered claim",
    ]
    shape, (_, last) = protocol.actions.shape, found.trace.steps[-1]
    one, other = (shape.holdings[node][0] for node in range(2))
    assert last[one + HELD_EPOCH] == last[other + HELD_EPOCH] == 1
    assert last[one + HELD] != last[other + HELD]
    assert_printed(found)


def test_a_random_claim_fences_where_an_epoch_does_not() -> None:
    with_claim_ids = search(Protocol(LOSING, ("no_stale_write",)), states_max=STATES_MAX)
    assert with_claim_ids.complete
    _, found = find(LOSING.without(Guard.CLAIM_ID), "no_stale_write")
    assert words(found.trace)[-3:] == ["node B sends claim", "node B answered claim", "node A answered take"]
    assert_printed(found)


@pytest.mark.parametrize(("messages", "faults"), [(1, 2), (2, 1)])
def test_even_then_the_chain_of_states_is_whole(messages: int, faults: int) -> None:
    """What a store forgot is gone as a whole: no commit meets a state that it was not made from."""
    allowed = frozenset({Fault.LOSING_FAILOVER, Fault.CRASH, Fault.PAUSE, Fault.ANSWER_LOST})
    specs = (MessageSpec(), MessageSpec(stamp="tdc3"))[:messages]
    configuration = evolve(LOSING, messages=specs, faults=faults, allowed=allowed)
    report = search(Protocol(configuration, ("chain_is_whole",)), states_max=100_000)
    assert report.complete


@pytest.mark.anyio
async def test_a_take_that_arrives_late_is_known_to_nobody() -> None:
    """The one step whose late copy does something: it takes the next message, and the answer goes nowhere.

    A sweep names the dispatch only where it is asked for those of its own claim; so the owner has to ask.
    """
    protocol, found = find(LATE_TAKE.without(Guard.LOOK), "unfinished")
    assert found.what == "nothing moves, and message 1 is dispatched"
    assert words(found.trace)[-3:] == ["node A answered finish", "client appends", "take arrives late"]
    assert_printed(found)
    # The journal does the same.
    translation, state = Translation(protocol.actions), found.trace.first
    async with translation.new_journal() as journal:
        for label, after in found.trace.steps:
            for step in steps_of(protocol.actions, state, label):
                await journal.execute([translation.step(step)])
            state = after
        assert translation.stored(journal) == translation.modelled(state)
        sweep = Sweep(partition=0, claim="claim-1")
        assert (await journal.execute([sweep])).results[0] == Swept(
            due=(), unsettled=(), next_due_ms=0, outbound=()
        )
        (looked,) = (await journal.execute([replace(sweep, own_from="")])).results
        assert isinstance(looked, Swept)
        assert [(own.entity, own.turn) for own in looked.own] == [("thing/0", 2)]


@pytest.mark.parametrize("releases", [0, 1])
def test_an_owner_that_looks_finds_what_a_late_take_began(releases: int) -> None:
    """It runs, or is given back before the partition is; and nothing else goes wrong by that."""
    configuration = evolve(LATE_TAKE, releases=releases)
    report = search(Protocol(configuration), states_max=100_000)
    assert report.complete
    assert report.found is None
    protocol = Protocol(configuration)
    shape = protocol.actions.shape
    protocol.wrong = lambda state: (
        "it has run" if state[shape.begun_turns[0]] == 2 and not state[shape.late_step] else None
    )
    found = search(protocol, states_max=100_000).found
    assert found is not None
