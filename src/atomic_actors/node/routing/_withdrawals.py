"""Withdraws messages: on request, or because their asker was cancelled."""

from __future__ import annotations

from typing import Protocol

import anyio

from atomic_actors.base._errors import AtomicActorsError, SystemFailed, error_from_code
from atomic_actors.base._telemetry import logger
from atomic_actors.contracts._waiting import WITHDRAW_LIMIT_S
from atomic_actors.journal._protocol import JournalUnavailable, Rejected, Result, Withdraw, WithdrawAnswer
from atomic_actors.journal.commit._commit_queue import CommitQueue

__all__ = ("Waiters", "withdraw", "withdraw_cancelled", "withdraw_soon")

WITHDRAWN = b"withdrawn\n"


class Waiters(Protocol):
    """Those who wait for the outcomes of messages."""

    def answered(self, entity: str, uid: str, outcome: bytes) -> bool:
        """Hand an outcome to every waiter here; returns whether there was one."""
        ...


async def withdraw(waiters: Waiters, journal: CommitQueue, step: Withdraw) -> bool:
    """Withdraw a message; False where it was not withdrawn now, or the store gave no answer.

    Raises:
        AtomicActorsError: the store cannot read what it has of the message.
    """
    entity, uid = step.entity, step.uid
    try:
        answer = await journal.request(step)
        if isinstance(answer, WithdrawAnswer) and answer.state == "needs_key":
            answer = await journal.request(Withdraw(step.partition, entity, uid, answer.key))
    except JournalUnavailable as error:
        logger.info("%s/%s could not be withdrawn: %s", entity, uid, error)
        return False
    if isinstance(answer, Rejected):
        raise error_from_code(answer.code, answer.text, message_id=f"{entity}/{uid}")
    if not isinstance(answer, WithdrawAnswer):
        raise SystemFailed(f"the journal answered a withdrawal with {answer!r}")
    if answer.state != "withdrawn":
        return False
    waiters.answered(entity, uid, WITHDRAWN)
    return True


async def withdraw_cancelled(waiters: Waiters, journal: CommitQueue, step: Withdraw) -> None:
    """Withdraw the message of an ask that is cancelled; that it cannot be must not hide the cancellation."""
    with anyio.move_on_after(WITHDRAW_LIMIT_S, shield=True):
        try:
            await withdraw(waiters, journal, step)
        except AtomicActorsError as error:
            logger.warning("%s/%s could not be withdrawn: %s", step.entity, step.uid, error)


def withdraw_soon(waiters: Waiters, journal: CommitQueue, step: Withdraw) -> None:
    """Withdraw a message without waiting for the store."""

    def on_result(answer: Result | JournalUnavailable) -> None:
        if not isinstance(answer, WithdrawAnswer):
            logger.info("%s/%s could not be withdrawn: %s", step.entity, step.uid, answer)
        elif answer.state == "needs_key":
            again = Withdraw(step.partition, step.entity, step.uid, answer.key)
            withdraw_soon(waiters, journal, again)
        elif answer.state == "withdrawn":
            waiters.answered(step.entity, step.uid, WITHDRAWN)

    try:
        journal.submit(step, on_result)
    except JournalUnavailable as error:
        on_result(error)
