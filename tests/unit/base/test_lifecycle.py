"""The table of transitions and the decisions beside it, against lists that were written apart from them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.base._lifecycle import (
    FINAL_STATES,
    TRANSITIONS,
    Event,
    IllegalTransition,
    InterruptionPolicy,
    InterruptionRules,
    Settlement,
    State,
    advance,
    decide_failure,
    decide_interruption,
    may_leave_unrun,
)

#: Every legal edge, as words: what `docs` and the store say too.
LEGAL = {
    ("absent", "append"): "enqueued",
    ("enqueued", "take"): "dispatched",
    ("enqueued", "withdraw"): "withdrawn",
    ("enqueued", "expire"): "expired",
    ("dispatched", "complete"): "completed",
    ("dispatched", "refuse"): "completed",
    ("dispatched", "retry"): "enqueued",
    ("dispatched", "fail"): "failed",
    ("dispatched", "requeue"): "enqueued",
    ("dispatched", "interrupt"): "interrupted",
}
STATES = ["absent", "enqueued", "dispatched", "completed", "failed", "interrupted", "withdrawn", "expired"]
EVENTS = [
    "append",
    "take",
    "complete",
    "refuse",
    "retry",
    "fail",
    "requeue",
    "interrupt",
    "withdraw",
    "expire",
]

stamps = st.builds(
    InterruptionRules,
    transactional=st.booleans(),
    policy=st.sampled_from(InterruptionPolicy),
    park_on_dead=st.booleans(),
    max_interruptions=st.integers(min_value=0, max_value=10**12),
)


def test_words() -> None:
    assert [str(state) for state in State] == STATES
    assert [str(event) for event in Event] == EVENTS


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_every_event_in_every_state(state: str, event: str) -> None:
    expected = LEGAL.get((state, event))
    if expected is not None:
        assert advance(State(state), Event(event)) is State(expected)
        return
    before = {state: dict(edges) for state, edges in TRANSITIONS.items()}
    with pytest.raises(IllegalTransition, match=f"a message that is {state} cannot {event}") as caught:
        advance(State(state), Event(event))
    assert (caught.value.state, caught.value.event) == (State(state), Event(event))
    assert {state: dict(edges) for state, edges in TRANSITIONS.items()} == before


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[State.COMPLETED] = {Event.TAKE: State.DISPATCHED}  # type: ignore[index]
    with pytest.raises(TypeError):
        TRANSITIONS[State.COMPLETED][Event.TAKE] = State.DISPATCHED  # type: ignore[index]


def test_final_states() -> None:
    words = {"completed", "failed", "interrupted", "withdrawn", "expired"}
    assert {state.value for state in FINAL_STATES} == words
    assert set(TRANSITIONS) == set(State)


def test_every_state_is_reached_and_every_unfinished_one_can_end() -> None:
    reached, frontier = {State.ABSENT}, [State.ABSENT]
    while frontier:
        for state in TRANSITIONS[frontier.pop()].values():
            if state not in reached:
                reached.add(state)
                frontier.append(state)
    assert reached == set(State)
    for state in set(State) - FINAL_STATES - {State.ABSENT}:
        assert FINAL_STATES & set(TRANSITIONS[state].values())


@pytest.mark.parametrize(("attempts", "may"), [(0, True), (1, False), (2, False), (100, False)])
def test_may_leave_unrun(attempts: int, may: bool) -> None:
    assert may_leave_unrun(attempts) is may


@pytest.mark.parametrize(
    ("attempts", "interruptions", "max_attempts", "event"),
    [
        (1, 0, 1, "fail"),
        (1, 0, 2, "retry"),
        (2, 0, 2, "fail"),
        (3, 0, 2, "fail"),
        (1, 0, 0, "retry"),
        (1_000_000, 0, 0, "retry"),
        # What was cut off does not count as a failure.
        (2, 1, 1, "fail"),
        (2, 1, 2, "retry"),
        (3, 1, 2, "fail"),
        (4, 3, 2, "retry"),
        (5, 3, 2, "fail"),
    ],
)
def test_decide_failure(attempts: int, interruptions: int, max_attempts: int, event: str) -> None:
    assert decide_failure(attempts, interruptions, max_attempts) is Event(event)


@given(max_attempts=st.integers(1, 20), cuts=st.lists(st.booleans(), max_size=40))
def test_a_message_fails_exactly_max_attempts_times(max_attempts: int, cuts: list[bool]) -> None:
    interruptions = failures = 0
    for attempts, cut in enumerate(itertools.chain(cuts, itertools.repeat(False)), start=1):
        if cut:
            interruptions += 1
            continue
        failures += 1
        if decide_failure(attempts, interruptions, max_attempts) is Event.FAIL:
            break
    assert failures == max_attempts


#: (nature and policy) to the settlement below the limit, for a plain turn.
BELOW_THE_LIMIT = {
    "td": "requeue",
    "tr": "requeue",
    "tm": "requeue",
    "ed": "interrupt",
    "er": "requeue",
    "em": "recover",
}


@pytest.mark.parametrize("rules", list(BELOW_THE_LIMIT))
@pytest.mark.parametrize("then", ["c", "p"])
@pytest.mark.parametrize("limit", [0, 1, 2, 3])
@pytest.mark.parametrize("interruptions", [1, 2, 3, 4])
@pytest.mark.parametrize("recovering", [False, True])
def test_decide_interruption(rules: str, then: str, limit: int, interruptions: int, recovering: bool) -> None:
    stamp = InterruptionRules.decode(f"{rules}{then}{limit}")
    final = recovering or (limit != 0 and interruptions >= limit)
    expected = "interrupt" if final else BELOW_THE_LIMIT[rules]
    assert decide_interruption(stamp, interruptions, recovering=recovering) is Settlement(expected)


@pytest.mark.parametrize(
    ("settlement", "event"), [("requeue", "requeue"), ("recover", "requeue"), ("interrupt", "interrupt")]
)
def test_settlements_are_legal_events(settlement: str, event: str) -> None:
    assert Settlement(settlement).event is Event(event)
    advance(State.DISPATCHED, Settlement(settlement).event)


@given(stamp=stamps, cuts=st.integers(1, 50))
def test_no_message_is_cut_off_for_ever(stamp: InterruptionRules, cuts: int) -> None:
    recovering = False
    for interruptions in range(1, cuts + 1):
        settlement = decide_interruption(stamp, interruptions, recovering=recovering)
        if settlement is Settlement.INTERRUPT:
            return
        recovering = settlement is Settlement.RECOVER
        if stamp.max_interruptions:
            assert interruptions < stamp.max_interruptions
    assert stamp.max_interruptions == 0 or cuts < stamp.max_interruptions


@given(stamps)
def test_stamp_round_trip(stamp: InterruptionRules) -> None:
    assert InterruptionRules.decode(stamp.encode()) == stamp


def test_stamp_words() -> None:
    default = InterruptionRules(False, InterruptionPolicy.DEAD_LETTER, False, 3)
    assert default.encode() == "edc3"
    assert InterruptionRules(True, InterruptionPolicy.METHOD, True, 0).encode() == "tmp0"
    assert InterruptionRules.decode("erp12") == InterruptionRules(False, InterruptionPolicy.RETRY, True, 12)


@pytest.mark.parametrize(
    "text", ["", "edc", "xdc3", "exc3", "edx3", "edc-1", "edc3 ", "edc3x", " edc3", "EDC3"]
)
def test_what_is_no_stamp(text: str) -> None:
    with pytest.raises(ValueError, match=r"stamp|InterruptionPolicy"):
        InterruptionRules.decode(text)


@given(st.text(max_size=6))
def test_whatever_decodes_is_a_stamp(text: str) -> None:
    try:
        stamp = InterruptionRules.decode(text)
    except ValueError:
        return
    assert InterruptionRules.decode(stamp.encode()) == stamp
