"""How outbox messages get from one partition to another: in order, once, and with every loss reported."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest
from attrs import Factory, define, field

from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import (
    JournalSettings,
    JournalUnavailable,
    Rejected,
    RelayAck,
    RelayAcked,
    Relayed,
    RelayEntry,
    RelayIn,
    RelayPage,
    RelayRead,
    Result,
    Stale,
    Step,
)
from atomic_actors.node.routing._relay import BATCH_MESSAGES, Relay

CLAIM = "claim-of-0"
INCARNATION = 7
#: The source is partition 0, the target partition 3 of this service or of another one.
TARGET, FAR_TARGET = 3, "billing/3"


def page(*numbers: int, entity: str = "account/a") -> RelayPage:
    return RelayPage(
        INCARNATION, tuple(RelayEntry(number, entity, f"u-{number}", b"body") for number in numbers)
    )


@define(eq=False)
class ScriptedJournal:
    """Takes steps, and answers each when the test says so."""

    settings: JournalSettings = Factory(lambda: JournalSettings(service="shop"))
    waiting: deque[tuple[Step, Callable[[Result | JournalUnavailable], None]]] = Factory(deque)

    def enqueue(self, step: Step, on_result: Callable[[Result | JournalUnavailable], None]) -> None:
        self.waiting.append((step, on_result))

    def answer(self, result: Result | JournalUnavailable) -> Step:
        """Answer the oldest step, and return it."""
        step, on_result = self.waiting.popleft()
        on_result(result)
        return step


@define(eq=False)
class Ways:
    """The ways to other services: one of them is there, or none."""

    journal: ScriptedJournal | None
    asked: list[tuple[str, str]] = Factory(list)

    def reach(self, service: str, kind: str, then: Callable[[ScriptedJournal | None], None]) -> None:
        self.asked.append((service, kind))
        then(self.journal)


@define(eq=False)
class Stage:
    """A relay, and what it does."""

    far: ScriptedJournal | None = None
    journal: ScriptedJournal = Factory(ScriptedJournal)
    claims: list[str] = Factory(lambda: [CLAIM, "", "", ""])
    woken: list[tuple[int, str]] = Factory(list)
    losses: list[tuple[HistoryLoss, int]] = Factory(list)
    ways: Ways = field(init=False)
    relay: Relay = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ways = Ways(self.far)
        self.relay = Relay(
            journal=cast("Any", self.journal),
            claims=self.claims,
            service_journals=cast("Any", self.ways),
            waker=self,
            observer=self,
        )

    def wake(self, number: int, entity: str) -> None:
        self.woken.append((number, entity))

    def stream_lost(self, loss: HistoryLoss, source: int) -> None:
        self.losses.append((loss, source))

    @property
    def is_at_rest(self) -> bool:
        return not self.journal.waiting and (self.far is None or not self.far.waiting)


def test_a_page_is_read_taken_and_forgotten() -> None:
    stage = Stage()
    stage.relay.kick(0, TARGET)
    assert stage.journal.answer(page(4, 5)) == RelayRead(0, CLAIM, TARGET, BATCH_MESSAGES)
    assert stage.relay.moved == 0
    assert stage.journal.answer(Relayed(5, ("account/a",))) == RelayIn(
        partition=TARGET, source=0, incarnation=INCARNATION, entries=page(4, 5).entries
    )
    assert (stage.relay.moved, stage.woken) == (2, [(TARGET, "account/a")])
    assert stage.journal.answer(RelayAcked(0)) == RelayAck(
        partition=0, claim=CLAIM, target=TARGET, last=5, incarnation=INCARNATION
    )
    assert stage.is_at_rest


def test_an_empty_stream_rests_until_the_next_kick() -> None:
    stage = Stage()
    for _ in range(2):
        stage.relay.kick(0, TARGET)
        stage.journal.answer(page())
        assert stage.is_at_rest


def test_one_batch_of_a_stream_is_under_way_at_a_time() -> None:
    stage = Stage()
    stage.relay.kick(0, TARGET)
    stage.relay.kick(0, TARGET)
    assert len(stage.journal.waiting) == 1
    stage.journal.answer(page(1))
    stage.relay.kick(0, TARGET)
    stage.journal.answer(Relayed(1, ()))
    # What was added meanwhile is read afterwards, though the store knew of nothing when it forgot the page.
    stage.journal.answer(RelayAcked(0))
    assert isinstance(stage.journal.answer(page()), RelayRead)
    assert stage.is_at_rest


def test_a_kick_during_the_last_read_is_not_forgotten() -> None:
    stage = Stage()
    stage.relay.kick(0, TARGET)
    stage.relay.kick(0, TARGET)
    stage.journal.answer(page())
    assert isinstance(stage.journal.answer(page()), RelayRead)
    assert stage.is_at_rest


def test_what_is_left_is_read_at_once() -> None:
    stage = Stage()
    stage.relay.kick(0, TARGET)
    stage.journal.answer(page(1))
    stage.journal.answer(Relayed(1, ()))
    stage.journal.answer(RelayAcked(3))
    assert isinstance(stage.journal.answer(page(2, 3, 4)), RelayRead)
    assert isinstance(stage.journal.answer(Relayed(4, ())), RelayIn)
    stage.journal.answer(RelayAcked(0))
    assert (stage.is_at_rest, stage.relay.moved) == (True, 4)


def test_streams_do_not_wait_for_each_other() -> None:
    stage = Stage()
    stage.relay.kick(0, TARGET)
    stage.relay.kick(0, 2)
    assert [cast("RelayRead", step).target for step, _ in stage.journal.waiting] == [TARGET, 2]


def test_a_partition_of_another_node_is_left_alone() -> None:
    stage = Stage()
    stage.relay.kick(1, TARGET)
    assert stage.is_at_rest


def test_what_was_read_under_an_earlier_claim_is_not_sent() -> None:
    stage = Stage()
    stage.relay.kick(0, TARGET)
    stage.claims[0] = "a-later-claim"
    stage.journal.answer(page(1))
    assert stage.is_at_rest
    stage.relay.kick(0, TARGET)
    assert stage.journal.answer(page()) == RelayRead(0, "a-later-claim", TARGET, BATCH_MESSAGES)


@pytest.mark.parametrize("answered", range(3), ids=["read", "relay", "acknowledge"])
@pytest.mark.parametrize("failure", [JournalUnavailable("it is away", sent=True), Stale("claim")], ids=str)
def test_a_failure_ends_it_until_the_next_kick(answered: int, failure: Result | JournalUnavailable) -> None:
    answers = [page(1), Relayed(1, ()), RelayAcked(0)]
    stage = Stage()
    stage.relay.kick(0, TARGET)
    for answer in answers[:answered]:
        stage.journal.answer(answer)
    stage.journal.answer(failure)
    assert stage.is_at_rest
    stage.relay.kick(0, TARGET)
    for answer in answers:
        stage.journal.answer(answer)
    assert stage.is_at_rest


def test_a_damaged_stream_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    for _ in range(3):
        stage.relay.kick(0, TARGET)
        stage.journal.answer(Rejected("damaged", "its numbers are missing"))
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "from partition 0 to 3" in errors[0].getMessage()
    assert "its numbers are missing" in errors[0].getMessage()


# --- gaps ------------------------------------------------------------------------------------------------


def at_the_gap() -> Stage:
    """The target rejected messages 4 and 5, for it does not know of those before."""
    stage = Stage()
    stage.relay.kick(0, TARGET)
    stage.journal.answer(page(4, 5))
    stage.journal.answer(Rejected("stream_gap", "expected 2"))
    return stage


def test_a_gap_is_measured_reported_and_passed() -> None:
    stage = at_the_gap()
    assert stage.journal.answer(Relayed(1, ())) == RelayIn(
        partition=TARGET, source=0, incarnation=INCARNATION, entries=()
    )
    assert stage.losses == [(HistoryLoss(TARGET, 3, 1), 0)]
    assert stage.journal.answer(Relayed(5, ())) == RelayIn(
        partition=TARGET, source=0, incarnation=INCARNATION, entries=page(4, 5).entries, after_loss=True
    )
    stage.journal.answer(RelayAcked(0))
    assert (stage.is_at_rest, stage.relay.moved) == (True, 2)


def test_a_gap_that_was_filled_meanwhile_is_no_loss() -> None:
    stage = at_the_gap()
    stage.journal.answer(Relayed(3, ()))
    assert stage.losses == []
    assert cast("RelayIn", stage.journal.waiting[0][0]).after_loss


def test_a_gap_behind_a_loss_ends_it() -> None:
    stage = at_the_gap()
    stage.journal.answer(Relayed(1, ()))
    stage.journal.answer(Rejected("stream_gap", "expected 2"))
    assert stage.is_at_rest


def test_a_gap_that_cannot_be_measured_is_not_passed() -> None:
    stage = at_the_gap()
    stage.journal.answer(JournalUnavailable("it is away", sent=True))
    assert (stage.is_at_rest, stage.losses) == (True, [])


# --- other services --------------------------------------------------------------------------------------


def test_another_service_gets_it_under_both_names() -> None:
    far = ScriptedJournal()
    stage = Stage(far)
    stage.relay.kick(0, FAR_TARGET)
    stage.journal.answer(page(1, entity="invoice/i"))
    assert stage.ways.asked == [("billing", "invoice")]
    assert far.answer(Relayed(1, ("invoice/i",))) == RelayIn(
        partition=3, source="shop/0", incarnation=INCARNATION, entries=page(1, entity="invoice/i").entries
    )
    # Its owner is a node of the other service, where the doorbell rings.
    assert stage.woken == []
    assert stage.journal.answer(RelayAcked(0)) == RelayAck(
        partition=0, claim=CLAIM, target=FAR_TARGET, last=1, incarnation=INCARNATION
    )
    assert stage.is_at_rest


def test_a_loss_of_another_service_has_its_own_number() -> None:
    far = ScriptedJournal()
    stage = Stage(far)
    stage.relay.kick(0, FAR_TARGET)
    stage.journal.answer(page(4))
    far.answer(Rejected("stream_gap", "expected 1"))
    assert far.answer(Relayed(0, ())) == RelayIn(
        partition=3, source="shop/0", incarnation=INCARNATION, entries=()
    )
    assert stage.losses == [(HistoryLoss(3, 3, 0), 0)]


def test_a_service_that_cannot_be_reached_is_tried_again_at_the_next_kick() -> None:
    stage = Stage()
    for _ in range(2):
        stage.relay.kick(0, FAR_TARGET)
        stage.journal.answer(page(1))
        assert stage.is_at_rest
    assert len(stage.ways.asked) == 2
