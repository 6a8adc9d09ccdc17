"""`ActorStateMachine`: right actors pass, wrong ones fail, and the failure is small."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from atomic_actors import UsageError
from atomic_actors.testing import ActorStateMachine, SimulationFailed, messages
from tests.kit.bank import Account, AccountModel, Deposit, Forgetful, GetBalance, Withdraw

SETTINGS = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    # What follows a shrink, an explanation, runs everything many times more.
    phases=(Phase.generate, Phase.shrink),
    database=None,
    suppress_health_check=list(HealthCheck),
)
AMOUNTS = {cls: {"amount": st.integers(1, 100)} for cls in (Deposit, Withdraw)}


class AccountMachine(ActorStateMachine):
    actors = [Account]
    models = {"account": AccountModel()}
    messages = messages(Account, only=[Deposit, Withdraw, GetBalance], overrides=AMOUNTS)


class ForgetfulMachine(AccountMachine):
    actors = [Forgetful]
    messages = messages(Deposit, overrides={Deposit: {"amount": st.integers(1, 100)}})
    nodes = 1


class GenerousModel(AccountModel):
    """Gets withdrawals wrong."""

    def apply(self, state: int, input: Any) -> tuple[int, int]:
        if isinstance(input, Withdraw):
            return state, state
        return super().apply(state, input)


class WrongModelMachine(AccountMachine):
    models = {"account": GenerousModel()}


def test_a_right_actor_passes() -> None:
    run_state_machine_as_test(AccountMachine, settings=SETTINGS)


def smallest_failure(
    machine: type[ActorStateMachine], capsys: pytest.CaptureFixture[str]
) -> tuple[str, list[str]]:
    with pytest.raises(SimulationFailed) as failure:
        run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=100))
    notes = "\n".join(getattr(failure.value, "__notes__", []))
    steps = [line for line in notes.splitlines() if line.startswith("state.") and "begin" not in line]
    return str(failure.value), steps


def test_a_wrong_model_fails_with_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    text, steps = smallest_failure(WrongModelMachine, capsys)
    assert "not linearizable" in text
    assert text.startswith("seed 0,")
    assert [step.partition("(")[0] for step in steps] == ["state.ask", "state.teardown"]


def test_an_actor_that_keeps_its_state_to_itself_fails_when_it_has_gone_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, steps = smallest_failure(ForgetfulMachine, capsys)
    assert "not linearizable" in text
    kinds = [step.partition("(")[0] for step in steps]
    # It forgets when its node dies, and just as well when it has slept.
    assert sum(kind in ("state.crash", "state.pause", "state.advance") for kind in kinds) == 1
    assert len(kinds) <= 5


def test_actors_are_needed() -> None:
    with pytest.raises(UsageError, match="set `actors`"):
        ActorStateMachine()
