"""The search for an order, compared with trying all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from random import Random
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.testing.checkers._history import Word
from atomic_actors.testing.checkers._linearizability import (
    ANYTHING,
    NotLinearizable,
    Operation,
    RefusedWith,
    SequentialModel,
    Undecided,
    check_linearizable,
    entities_called,
    operations_of,
)
from tests.checkers.story import A, B, Story

#: An account: `("add", n)` answers with the balance, `("read",)` too, `("take", n)` may be refused.
Input = tuple[Any, ...]


class AccountModel:
    def initial(self) -> int:
        return 0

    def apply(self, state: int, input: Input) -> tuple[int, object]:
        match input:
            case ("add", int(amount)):
                return state + amount, state + amount
            case ("take", int(amount)) if amount > state:
                return state, RefusedWith(state)
            case ("take", int(amount)):
                return state - amount, state - amount
            case _:
                return state, state


class ListModel:
    """Its inputs are lists: they have no hash."""

    def initial(self) -> tuple[int, ...]:
        return ()

    def apply(self, state: tuple[int, ...], input: list[int]) -> tuple[tuple[int, ...], int]:
        return (*state, *input), len(state)


def add(amount: int, called_at: int, returned_at: int | None = None, output: object = ANYTHING) -> Operation:
    return Operation(
        caller="c", input=("add", amount), called_at=called_at, returned_at=returned_at, output=output
    )


def read(called_at: int, returned_at: int, output: object) -> Operation:
    return Operation(caller="c", input=("read",), called_at=called_at, returned_at=returned_at, output=output)


def try_all_orders(operations: Sequence[Operation]) -> bool:
    """Whether any order of all that returned, and of any of the others, explains it."""
    known = [operation for operation in operations if operation.returned_at is not None]
    unknown = [operation for operation in operations if operation.returned_at is None]
    return any(
        explains(order)
        for number in range(len(unknown) + 1)
        for some in combinations(unknown, number)
        for order in permutations([*known, *some])
    )


def explains(order: Sequence[Operation]) -> bool:
    for earlier, later in combinations(order, 2):
        if later.returned_at is not None and later.returned_at < earlier.called_at:
            return False
    model = AccountModel()
    state = model.initial()
    for operation in order:
        state, output = model.apply(state, operation.input)
        if operation.returned_at is not None and operation.output not in (ANYTHING, output):
            return False
    return True


INPUTS = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 2)),
    st.tuples(st.just("take"), st.integers(1, 2)),
    st.just(("read",)),
)


@st.composite
def few_operations(draw: st.DrawFn) -> list[Operation]:
    """Up to five operations whose outputs are often possible."""
    operations: list[Operation] = []
    # No two of them at one time: what comes first is then the same for both.
    times = draw(st.permutations(range(10)))
    for number in range(draw(st.integers(0, 5))):
        called_at, returned_at = sorted(times[2 * number : 2 * number + 2])
        input_ = draw(INPUTS)
        if draw(st.integers(0, 3)) == 0:
            operations.append(Operation(caller="c", input=input_, called_at=called_at))
            continue
        numbers = st.integers(0, 3)
        output = draw(st.one_of(numbers, st.builds(RefusedWith, numbers), st.just(ANYTHING)))
        operations.append(
            Operation(caller="c", input=input_, called_at=called_at, returned_at=returned_at, output=output)
        )
    return operations


@given(operations=few_operations())
def test_it_says_what_trying_all_orders_says(operations: list[Operation]) -> None:
    found = check_linearizable(operations, AccountModel())
    assert not isinstance(found, Undecided)
    assert (found is None) == try_all_orders(operations)
    if found is not None:
        # The part that it put in order is one.
        assert explains(found.prefix)
        assert found.stuck in operations
        assert found.stuck not in found.prefix


def test_both_answers_come_up() -> None:
    # So that the comparison above compares something.
    assert check_linearizable([add(1, 0, 1, 1), read(2, 3, 1)], AccountModel()) is None
    assert isinstance(check_linearizable([add(1, 0, 1, 1), read(2, 3, 0)], AccountModel()), NotLinearizable)


@pytest.mark.parametrize(
    ("operations", "is_fine"),
    [
        pytest.param([], True, id="nothing"),
        pytest.param([add(1, 0, 9, 1), read(1, 2, 0), read(3, 4, 1)], True, id="in between"),
        pytest.param([add(1, 0, 9, 1), read(1, 2, 1), read(3, 4, 0)], False, id="back again"),
        pytest.param([add(1, 0), read(1, 2, 0), read(3, 4, 1)], True, id="unknown and late"),
        pytest.param([add(1, 0), read(1, 2, 0), read(3, 4, 0)], True, id="unknown and never"),
        pytest.param([add(1, 3), read(1, 2, 1)], False, id="unknown and before its call"),
        pytest.param([add(1, 0), add(1, 0), read(1, 2, 2)], True, id="two unknown ones alike"),
        pytest.param([add(1, 0), add(1, 3), read(1, 2, 2)], False, id="one of two alike is too late"),
        pytest.param([add(1, 0), add(1, 3), read(1, 2, 1), read(4, 5, 2)], True, id="one after the other"),
        pytest.param([add(1, 0, 1), read(2, 3, 1)], True, id="returned and nobody saw what"),
        pytest.param([add(1, 0, 1), read(2, 3, 0)], False, id="returned, and so it has happened"),
        pytest.param([add(1, 0, 2, 1), read(2, 3, 0)], True, id="at the same time is not before"),
    ],
)
def test_cases(operations: list[Operation], is_fine: bool) -> None:
    assert (check_linearizable(operations, AccountModel()) is None) == is_fine
    assert try_all_orders(operations) == is_fine


def test_the_explanation() -> None:
    operations = [
        Operation(caller="ann", input=("add", 5), called_at=0, returned_at=1, output=5),
        Operation(caller="bob", input=("add", 2), called_at=2),
        Operation(caller="cleo", input=("read",), called_at=3, returned_at=6, output=7),
        Operation(caller="dan", input=("read",), called_at=4, returned_at=5, output=6),
    ]
    found = check_linearizable(operations, AccountModel())
    assert isinstance(found, NotLinearizable)
    assert str(found) == (
        "not linearizable: 3 operations can be put in order, the last ones\n"
        "    ann: ('add', 5) -> 5 [0, 1]\n"
        "    bob: ('add', 2) -> ? [2, ...]\n"
        "    cleo: ('read',) -> 7 [3, 6]\n"
        "  which leads to the state 7. Then this one fits nowhere:\n"
        "    dan: ('read',) -> 6 [4, 5]\n"
        "  for the model says 7. Under way beside it:\n"
        "    nothing"
    )


def test_a_search_that_is_given_up() -> None:
    # A read that no sum of these explains: every one of 2 ** 14 sets has to be tried.
    operations = [add(2**number, 0) for number in range(14)]
    operations.append(read(1, 2, -1))
    found = check_linearizable(operations, AccountModel(), limit=1000)
    assert found == Undecided(1001)
    assert str(found) == "undecided after 1001 configurations"
    assert isinstance(check_linearizable(operations, AccountModel()), NotLinearizable)


def test_unknown_operations_that_are_alike_are_cheap() -> None:
    operations = [*(add(1, 0) for _ in range(200)), read(1, 2, -1)]
    assert isinstance(check_linearizable(operations, AccountModel(), limit=1000), NotLinearizable)


def test_unknown_operations_that_change_nothing_are_cheap() -> None:
    operations = [
        *(Operation(caller="c", input=("read", number), called_at=0) for number in range(200)),
        read(1, 2, 1),
    ]
    assert isinstance(check_linearizable(operations, AccountModel(), limit=10), NotLinearizable)


def test_inputs_without_a_hash() -> None:
    operations = [
        Operation(caller="c", input=[1], called_at=0),
        Operation(caller="c", input=[1], called_at=0),
        Operation(caller="c", input=[2], called_at=1, returned_at=2, output=2),
    ]
    assert check_linearizable(operations, ListModel()) is None
    nested = [Operation(caller="c", input=("add", 1, []), called_at=0), read(1, 2, 0)]
    assert check_linearizable(nested, AccountModel()) is None


def test_an_operation_that_returns_before_its_call() -> None:
    with pytest.raises(ValueError, match="returns before it is called"):
        check_linearizable([add(1, 2, 1)], AccountModel())


class LogModel:
    """Every append is another one, and each answer tells how many there were before it."""

    def initial(self) -> tuple[int, ...]:
        return ()

    def apply(self, state: tuple[int, ...], input: Input) -> tuple[tuple[int, ...], object]:
        match input:
            case ("append", int(number)):
                return (*state, number), len(state)
            case _:
                return state, state[-3:]


def account_input(chance: Random, place: int) -> Input:
    return chance.choice([("add", chance.randint(1, 9)), ("take", chance.randint(1, 9)), ("read",)])


def log_input(chance: Random, place: int) -> Input:
    return chance.choice([("append", place), ("append", place), ("read",)])


def client_history(
    seed: int,
    model: SequentialModel[Any],
    make_input: Callable[[Random, int], Input],
    *,
    number: int = 1000,
    clients: int = 5,
    lost: float = 0.01,
    never: float = 0.0,
) -> list[Operation]:
    """A right history, in which each client has at most one operation under way.

    A part of the answers is lost, and of those operations a part never happened.
    """
    chance = Random(seed)
    state, place = model.initial(), 0
    under_way: dict[int, tuple[Input, int, bool, object | None]] = {}
    operations: list[Operation] = []
    while len(operations) < number:
        place += 1
        client = chance.randrange(clients)
        if client not in under_way:
            under_way[client] = (make_input(chance, place), place, chance.random() < lost, None)
            continue
        input_, called_at, is_lost, output = under_way.pop(client)
        if output is None and not (is_lost and chance.random() < never):
            state, output = model.apply(state, input_)
            under_way[client] = (input_, called_at, is_lost, output)
        elif is_lost:
            operations.append(Operation(caller=str(client), input=input_, called_at=called_at))
        else:
            operations.append(
                Operation(
                    caller=str(client), input=input_, called_at=called_at, returned_at=place, output=output
                )
            )
    # What nobody has heard of yet may have happened.
    operations += [
        Operation(caller=str(client), input=input_, called_at=called_at)
        for client, (input_, called_at, *_) in under_way.items()
    ]
    return operations


def test_a_thousand_operations_of_five_clients() -> None:
    operations = client_history(1, AccountModel(), account_input)
    began_s = perf_counter()
    assert check_linearizable(operations, AccountModel()) is None
    took_s = perf_counter() - began_s
    # About a hundred times what it takes: only a search that explodes is meant to fail here.
    assert took_s < 5


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_operations_and_one_wrong_reply(seed: int) -> None:
    operations = client_history(seed, AccountModel(), account_input)
    place = next(
        place
        for place in range(900, 1000)
        if operations[place].input == ("read",) and operations[place].returned_at
    )
    operations[place] = Operation(
        caller="c",
        input=("read",),
        called_at=operations[place].called_at,
        returned_at=operations[place].returned_at,
        output=-1,
    )
    found = check_linearizable(operations, AccountModel())
    assert isinstance(found, NotLinearizable)
    assert found.stuck == operations[place]


@pytest.mark.parametrize("never", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_many_unknown_outcomes(seed: int, never: float) -> None:
    account = client_history(seed, AccountModel(), account_input, number=500, lost=0.05, never=never)
    assert check_linearizable(account, AccountModel()) is None
    log = client_history(seed, LogModel(), log_input, number=300, lost=0.03, never=never)
    assert check_linearizable(log, LogModel()) is None


# --- operations from a history -------------------------------------------------------------------------


def outcomes(story: Story, *, bounded_by_ends: bool = False) -> list[tuple[object, float | None, object]]:
    found = operations_of(story.history, A, bounded_by_ends=bounded_by_ends)
    return [(operation.input, operation.returned_at, operation.output) for operation in found]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("reply", [("m", 1, 5)]),
        ("refused", [("m", 1, RefusedWith(5))]),
        ("never", []),
        ("failed", []),
        ("interrupted", []),
        ("unknown", [("m", None, ANYTHING)]),
        ("accepted", [("m", None, ANYTHING)]),
        ("", [("m", None, ANYTHING)]),
    ],
)
def test_what_a_caller_learned(word: Word, expected: list[object]) -> None:
    story = Story()
    call = story.call(message="m")
    if word:
        story.answer(call, word, 5)
    assert outcomes(story) == expected


def test_a_result_that_was_asked_for_later() -> None:
    story = Story()
    story.answer(story.call(message="m"), "unknown", uid="m1")
    story.answer(story.call("m1", verb="result"), "reply", 5)
    # What others say of it is no output.
    story.answer(story.call("m1", verb="withdraw"), "reply", 9)
    assert outcomes(story) == [("m", 3, 5)]


def test_a_message_that_is_sent_twice_is_one() -> None:
    story = Story()
    story.answer(story.call("m1", message="m"), "unknown")
    story.answer(story.call("m1", message="m"), "never")
    assert outcomes(story) == [("m", None, ANYTHING)]
    story.answer(story.call("m1", message="m"), "reply", 5)
    assert outcomes(story) == [("m", 5, 5)]


def test_two_sendings_of_one_key_are_one() -> None:
    story = Story()
    story.answer(story.call(message="m"), "accepted", uid="m1")
    story.answer(story.call(message="m"), "reply", 5, uid="m1")
    assert outcomes(story) == [("m", 3, 5)]


def test_only_what_is_sent_to_this_entity() -> None:
    story = Story()
    story.call(entity=B, message="m")
    story.call(verb="result", message="m")
    assert outcomes(story) == []
    assert entities_called(story.history) == [A, B]


@pytest.mark.parametrize(
    ("event", "expected"),
    [("complete", [("m", 1, ANYTHING)]), ("refuse", [("m", 1, ANYTHING)]), ("fail", []), ("interrupt", [])],
)
def test_ends_that_no_caller_heard_of(event: str, expected: list[object]) -> None:
    story = Story()
    story.call("m1", message="m")
    story.end("m1", event=event)
    assert outcomes(story) == [("m", None, ANYTHING)]
    assert outcomes(story, bounded_by_ends=True) == expected


def test_an_end_says_nothing_new_of_what_was_heard() -> None:
    story = Story()
    call = story.call("m1", message="m")
    story.end("m1")
    story.answer(call, "reply", 5)
    assert outcomes(story, bounded_by_ends=True) == [("m", 2, 5)]
