"""Conformance: the life of one message, every state and every event."""

from __future__ import annotations

from typing import Final

import pytest
from msgspec.structs import replace

from atomic_actors.base._lifecycle import TRANSITIONS, Event, State
from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Appended,
    DeadLetterPage,
    Dispatch,
    Expire,
    Expired,
    Finish,
    Finished,
    Interrupt,
    ListDeadLetters,
    OutcomeRead,
    ReadOutcome,
    Rejected,
    Settled,
    Stale,
    Take,
    Taken,
    Verdict,
    Withdraw,
    WithdrawAnswer,
)
from atomic_actors.testing.journal_suite._probe import POLICY, OpenProbe, Probe, expect

ENDINGS: Final = {
    "complete": "completed",
    "refuse": "refused",
    "fail": "failed",
    "interrupt": "interrupted",
    "retry": "enqueued",
    "requeue": "enqueued",
}


async def bring_to(probe: Probe, state: State, entity: str, *, expired: bool = False) -> Append:
    """A message of this entity in this state. With `expired`, one whose deadline has passed."""
    step = probe.message(entity, deadline_ms=1 if expired or state is State.EXPIRED else 0, waited_for=True)
    if state is State.ABSENT:
        return step
    await probe.accept(step)
    if state is State.WITHDRAWN:
        await probe.send(Withdraw(0, entity, step.uid))
    elif state is State.EXPIRED:
        await probe.send(Expire(0, entity, step.uid))
    elif state is not State.ENQUEUED:
        dispatch = await probe.dispatch(entity)
        event = {State.COMPLETED: "complete", State.FAILED: "fail", State.INTERRUPTED: "interrupt"}.get(state)
        if event is not None:
            await probe.finish(dispatch, event, entity=entity)
    assert await probe.state_of(step) == state.value
    return step


async def cause(probe: Probe, event: Event, step: Append) -> None:
    """Send the step that would make this event happen to the message, whatever state it is in."""
    entity, uid = step.entity, step.uid
    match event:
        case Event.APPEND:
            await probe.send(step)
        case Event.TAKE:
            await probe.send(Take(partition=0, entity=entity, claim="claim-1", policy=POLICY))
        case Event.WITHDRAW:
            await probe.send(Withdraw(0, entity, uid))
        case Event.EXPIRE:
            await probe.send(Expire(0, entity, uid))
        case _:
            turn = (await probe.inspect(entity)).turn
            verdicts = (Verdict(uid=uid, event=event.value),)
            # `run_limit` 0: what the event puts back must not be taken again at once.
            await probe.send(
                Finish(
                    partition=0,
                    entity=entity,
                    claim="claim-1",
                    turn=turn,
                    verdicts=verdicts,
                    state=None,
                    expected_version=0,
                    policy=POLICY,
                    run_limit=0,
                )
            )


class Lives:
    """One message from its acceptance to its end."""

    @pytest.mark.parametrize("state", list(State), ids=str)
    async def test_every_event_in_every_state(self, open_probe: OpenProbe, state: State) -> None:
        async with open_probe() as probe:
            await probe.own()
            for event in Event:
                step = await bring_to(
                    probe,
                    state,
                    f"account/{state}-{event}",
                    expired=event is Event.EXPIRE and state is State.ENQUEUED,
                )
                counts = (await probe.audit()).counts
                await cause(probe, event, step)
                after = TRANSITIONS[state].get(event, state)
                if state is not after:
                    moved = {} if state is State.ABSENT else {state.value: counts[state.value] - 1}
                    counts = {**counts, **moved, after.value: counts[after.value] + 1}
                found = (await probe.audit()).counts
                for word in (one.value for one in State if one is not State.ABSENT):
                    assert found[word] == counts[word], f"{word} after {event} of a message that is {state}"
                word = "refused" if event is Event.REFUSE and state is State.DISPATCHED else after.value
                assert await probe.state_of(step) == word, f"{event} of a message that is {state}"

    @pytest.mark.parametrize("event", list(ENDINGS))
    async def test_ending(self, open_probe: OpenProbe, event: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            assert [message.uid for message in dispatch.messages] == [step.uid]
            assert dispatch.messages[0].body == step.body
            assert (dispatch.turn, dispatch.recovering, dispatch.version, dispatch.state) == (
                1,
                False,
                0,
                None,
            )
            assert (dispatch.messages[0].attempt, dispatch.messages[0].interruptions) == (1, 0)
            finished = await probe.finish(dispatch, event, run_limit=0)
            assert (finished.version, finished.not_buried) == (0, ())
            assert await probe.state_of(step) == ENDINGS[event]
            read = expect(OutcomeRead, await probe.send(ReadOutcome(0, step.entity, step.uid)))
            if ENDINGS[event] == "enqueued":
                assert read.outcome is None
                assert finished.offer.more
            else:
                assert read.outcome == ENDINGS[event].encode() + b"\nreply\n\x00"
                assert finished.offer == NOTHING
            page = expect(DeadLetterPage, await probe.send(ListDeadLetters(partition=0)))
            died = event in ("fail", "interrupt")
            assert (await probe.audit()).counts["refused"] == (event == "refuse")
            assert [letter.message_id for letter in page.letters] == [f"account/a/{step.uid}"] * died
            if died:
                (letter,) = page.letters
                assert (letter.reason, letter.error) == (ENDINGS[event], b"error\n\xff")
                assert (letter.attempts, letter.interruptions, letter.replayed_as) == (1, 0, "")
                assert letter.body == step.body
                assert 0 < letter.died_ms <= probe.now_ms

    async def test_state_and_version(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first = await probe.taken(probe.message())
            finished = await probe.finish(first, "complete", state=b"\x00one\n")
            assert finished.version == 1
            second = await probe.taken(probe.message())
            assert (second.version, second.state) == (1, b"\x00one\n")
            finished = await probe.finish(second, "complete", state=None)
            assert finished.version == 1
            await probe.accept(probe.message())
            third = await probe.dispatch(held_version=1)
            assert (third.version, third.state) == (1, None)
            again = await probe.dispatch(held_version=0)
            assert (again.turn, again.state) == (third.turn, b"\x00one\n")
            finished = await probe.finish(third, "complete", state=b"")
            assert finished.version == 2
            fourth = await probe.taken(replace(probe.message(), held_version=1))
            assert (fourth.version, fourth.state) == (2, b"")

    async def test_version_conflict_writes_nothing(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            refused = await probe.send(
                probe.finish_step(dispatch, "complete", state=b"lost update", expected_version=7)
            )
            assert expect(Rejected, refused).code == "version_conflict"
            assert await probe.state_of(step) == "dispatched"
            finished = await probe.finish(dispatch, "complete", state=b"right")
            assert finished.version == 1

    @pytest.mark.parametrize("event", ["append", "take", "withdraw", "expire", "vanish"])
    async def test_verdicts_that_cannot_happen(self, open_probe: OpenProbe, event: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            refused = await probe.send(probe.finish_step(dispatch, event, state=b"no"))
            assert expect(Rejected, refused).code == "bad_step"
            assert await probe.state_of(step) == "dispatched"
            # Nothing of a turn is committed where one of its verdicts is not valid.
            steps = [probe.message("account/b", "tdc3") for _ in range(2)]
            await probe.batch(*steps)
            run = await probe.dispatch("account/b", run_limit=2)
            wrong = probe.finish_step(run, "complete", event, entity="account/b", state=b"no")
            assert expect(Rejected, await probe.send(wrong)).code == "bad_step"
            assert [await probe.state_of(step) for step in steps] == ["dispatched"] * 2
            assert (await probe.audit()).counts["completed"] == 0

    async def test_verdicts_of_other_messages(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = [probe.message(name="tdc3") for _ in range(2)]
            await probe.batch(*steps)
            await probe.own()
            run = await probe.dispatch(run_limit=2)
            first, second, other = steps[0].uid, steps[1].uid, probe.new_uid()
            for names in ((second, first), (first, other), (first, first)):
                verdicts = tuple(Verdict(uid=uid, event="complete") for uid in names)
                refused = await probe.send(probe.finish_step(run, "complete", verdicts=verdicts))
                assert expect(Rejected, refused).code == "bad_step"
            assert [await probe.state_of(step) for step in steps] == ["dispatched"] * 2

    async def test_a_negative_back_off(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            refused = await probe.send(probe.finish_step(dispatch, "retry", delay_ms=-1))
            assert expect(Rejected, refused).code == "bad_step"
            assert await probe.state_of(step) == "dispatched"

    async def test_retry_keeps_its_place_and_waits(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first, second = probe.message(), probe.message()
            dispatch = await probe.taken(first)
            await probe.accept(second)
            finished = await probe.finish(dispatch, "retry", delay_ms=3_600_000)
            due_ms = finished.offer.not_before_ms
            assert 3_590_000 < due_ms - probe.now_ms <= 3_600_000
            assert (await probe.take()).not_before_ms == due_ms
            status = await probe.inspect()
            assert (status.waiting, status.not_before_ms) == (2, due_ms)
            assert await probe.state_of(second) == "enqueued"

    async def test_retry_is_taken_when_due(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first = probe.message()
            dispatch = await probe.taken(first)
            await probe.finish(dispatch, "retry", delay_ms=20)
            await probe.pass_ms(20)
            again = await probe.dispatch()
            assert again.turn == dispatch.turn + 1
            assert again.messages[0].uid == first.uid
            assert (again.messages[0].attempt, again.messages[0].interruptions) == (2, 0)
            await probe.finish(again, "complete")
            assert await probe.state_of(first) == "completed"

    async def test_requeue_gives_the_attempt_back(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            finished = await probe.finish(dispatch, "requeue")
            again = expect(Dispatch, finished.offer.dispatch)
            assert (again.turn, again.messages[0].attempt) == (2, 1)
            await probe.finish(again, "requeue", run_limit=0)
            withdrawn = await probe.send(Withdraw(0, step.entity, step.uid))
            assert withdrawn == WithdrawAnswer("withdrawn")

    async def test_outcome_expires(self, open_probe: OpenProbe) -> None:
        async with open_probe(result_ttl_ms=100) as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            await probe.finish(dispatch, "complete")
            await probe.pass_ms(101)
            assert await probe.state_of(step) == "absent"
            refused = await probe.send(step)
            assert expect(Rejected, refused).code == "unknown_message"
            assert (await probe.audit()).counts["accepted"] == 1

    # Leaving without a run.

    @pytest.mark.parametrize("waited_for", [True, False], ids=["ask", "tell"])
    async def test_expire(self, open_probe: OpenProbe, waited_for: bool) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(deadline_ms=1, waited_for=waited_for, key="k", claim="claim-1")
            offer = await probe.accept(step)
            assert offer.expired == (step.uid, "k")
            assert (await probe.take()).expired == (step.uid, "k")
            wrong_key = await probe.send(Expire(0, step.entity, step.uid))
            assert expect(Rejected, wrong_key).code == "bad_step"
            first = await probe.once(Expire(0, step.entity, step.uid, "k"))
            assert first == Expired(True, step.body)
            second = await probe.once(Expire(0, step.entity, step.uid, "k"))
            assert second == Expired(True, None)
            assert await probe.state_of(step) == "expired"
            page = expect(DeadLetterPage, await probe.send(ListDeadLetters(partition=0)))
            assert [letter.reason for letter in page.letters] == ([] if waited_for else ["expired"])
            assert await probe.take() == NOTHING
            # It never ran, so its key is free again.
            renewed = probe.message(key="k")
            await probe.accept(renewed)
            assert await probe.state_of(renewed) == "enqueued"

    async def test_expire_only_what_may(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            assert await probe.send(Expire(0, "account/a", probe.new_uid())) == Expired(False)
            step = probe.message(deadline_ms=probe.now_ms + 3_600_000)
            await probe.accept(step)
            assert await probe.send(Expire(0, step.entity, step.uid)) == Expired(False)
            dispatch = await probe.dispatch()
            assert await probe.send(Expire(0, step.entity, step.uid)) == Expired(False)
            await probe.finish(dispatch, "complete")
            assert await probe.send(Expire(0, step.entity, step.uid)) == Expired(False)
            assert await probe.state_of(step) == "completed"

    async def test_an_attempted_message_does_not_expire(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(deadline_ms=probe.now_ms + 100)
            dispatch = await probe.taken(step)
            await probe.finish(dispatch, "retry", run_limit=0)
            await probe.pass_ms(101)
            assert await probe.send(Expire(0, step.entity, step.uid)) == Expired(False)
            assert (await probe.dispatch()).messages[0].uid == step.uid

    async def test_expires_in_the_middle_of_the_log(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first, second, third = probe.message(), probe.message(deadline_ms=1), probe.message()
            for step in (first, second, third):
                await probe.accept(step)
            assert expect(Expired, await probe.send(Expire(0, second.entity, second.uid))).expired
            dispatch = await probe.dispatch()
            assert dispatch.messages[0].uid == first.uid
            finished = await probe.finish(dispatch, "complete")
            assert expect(Dispatch, finished.offer.dispatch).messages[0].uid == third.uid

    @pytest.mark.parametrize("key", ["", "k"])
    async def test_withdraw(self, open_probe: OpenProbe, key: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(key=key)
            await probe.accept(step)
            wrong = "" if key else "other"
            answer = await probe.send(Withdraw(0, step.entity, step.uid, wrong))
            assert answer == WithdrawAnswer("needs_key", key=key)
            assert await probe.state_of(step) == "enqueued"
            answer = await probe.send(Withdraw(0, step.entity, step.uid, key))
            assert answer == WithdrawAnswer("withdrawn")
            assert await probe.state_of(step) == "withdrawn"
            assert await probe.take() == NOTHING
            again = expect(Appended, await probe.send(step))
            assert (again.duplicate, again.outcome, again.offer) == (True, b"withdrawn\n", NOTHING)
            renewed = probe.message(key=key, digest="other content")
            await probe.accept(renewed)
            assert (await probe.dispatch()).messages[0].uid == renewed.uid

    async def test_withdraw_too_late(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(key="k")
            withdraw = Withdraw(0, step.entity, step.uid, "k")
            assert await probe.send(withdraw) == WithdrawAnswer("unknown")
            dispatch = await probe.taken(step)
            assert await probe.send(withdraw) == WithdrawAnswer("dispatched")
            finished = await probe.finish(dispatch, "retry", run_limit=0)
            assert await probe.send(withdraw) == WithdrawAnswer("enqueued")
            assert finished.offer.more
            await probe.finish(await probe.dispatch(), "complete")
            answer = await probe.send(withdraw)
            assert answer == WithdrawAnswer("finished", b"completed\nreply\n\x00")

    @pytest.mark.parametrize("run_limit", [1, 100])
    async def test_many_withdrawn_are_skipped_in_bounded_steps(
        self, open_probe: OpenProbe, run_limit: int
    ) -> None:
        async with open_probe() as probe:
            await probe.own()
            steps = [probe.message() for _ in range(80)]
            await probe.batch(*steps)
            last = steps[-1]
            await probe.batch(*(Withdraw(0, step.entity, step.uid) for step in steps[:-1]))
            assert (await probe.inspect()).waiting == 1
            take = Take(partition=0, entity="account/a", claim="claim-1", policy=POLICY, run_limit=run_limit)
            offers = [expect(Taken, await probe.once(take)).offer for _ in range(5)]
            more = [offer.more for offer in offers]
            assert more == sorted(more, reverse=True)
            # What is skipped is skipped for good, but not all of it at once.
            assert 1 <= sum(more) <= 4
            assert expect(Dispatch, offers[-1].dispatch).messages[0].uid == last.uid

    # Cut off.

    @pytest.mark.parametrize(
        ("stamp", "words"),
        [
            ("edc3", ["interrupt"]),
            ("erc3", ["requeue", "requeue", "interrupt"]),
            ("erc1", ["interrupt"]),
            ("erc0", ["requeue"] * 5),
            ("emc3", ["recover", "interrupt"]),
            ("emc1", ["interrupt"]),
            ("tdc3", ["requeue", "requeue", "interrupt"]),
            ("tmc3", ["requeue", "requeue", "interrupt"]),
            ("tdc1", ["interrupt"]),
            ("tdc0", ["requeue"] * 5),
        ],
    )
    async def test_interrupt(self, open_probe: OpenProbe, stamp: str, words: list[str]) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name=stamp)
            dispatch = await probe.taken(step)
            for cut, word in enumerate(words, start=1):
                uids = (step.uid,)
                settled = expect(
                    Settled,
                    await probe.send(
                        Interrupt(
                            partition=0, entity=step.entity, claim="claim-1", turn=dispatch.turn, uids=uids
                        )
                    ),
                )
                assert settled.settlement == word
                if word == "interrupt":
                    assert settled.bodies == (step.body,)
                    break
                assert settled.bodies == ()
                dispatch = await probe.dispatch()
                assert dispatch.recovering is (word == "recover")
                (message,) = dispatch.messages
                assert (message.attempt, message.interruptions) == (cut + 1, cut)
            else:
                return
            assert await probe.state_of(step) == "interrupted"
            counts = (await probe.audit()).counts
            assert (counts["dispatched"], counts["interrupted"]) == (0, 1)
            page = expect(DeadLetterPage, await probe.send(ListDeadLetters(partition=0)))
            (letter,) = page.letters
            assert (letter.reason, letter.attempts, letter.interruptions) == (
                "interrupted",
                len(words),
                len(words),
            )
            assert await probe.take() == NOTHING

    async def test_interrupt_before_the_handler_began(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            for turn in range(1, 6):
                assert dispatch.turn == turn
                (message,) = dispatch.messages
                assert (message.attempt, message.interruptions) == (1, 0)
                settled = await probe.send(
                    Interrupt(
                        partition=0,
                        entity=step.entity,
                        claim="claim-1",
                        turn=turn,
                        uids=(step.uid,),
                        began=False,
                    )
                )
                assert settled == Settled("requeue")
                dispatch = await probe.dispatch()

    async def test_recovering_turns(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name="emc3")
            dispatch = await probe.taken(step)
            await probe.send(
                Interrupt(partition=0, entity=step.entity, claim="claim-1", turn=1, uids=(step.uid,))
            )
            dispatch = await probe.dispatch()
            assert dispatch.recovering
            # It did not begin: the next take still recovers.
            not_begun = Interrupt(
                partition=0, entity=step.entity, claim="claim-1", turn=2, uids=(step.uid,), began=False
            )
            assert await probe.send(not_begun) == Settled("requeue")
            dispatch = await probe.dispatch()
            assert dispatch.recovering
            # The method says `Retry()`: the next take runs the handler, and a cut is the second one.
            finished = await probe.finish(dispatch, "retry")
            dispatch = expect(Dispatch, finished.offer.dispatch)
            assert not dispatch.recovering
            assert (dispatch.messages[0].attempt, dispatch.messages[0].interruptions) == (3, 1)
            settled = await probe.send(
                Interrupt(partition=0, entity=step.entity, claim="claim-1", turn=4, uids=(step.uid,))
            )
            assert settled == Settled("recover")
            dispatch = await probe.dispatch()
            await probe.finish(dispatch, "complete")
            assert await probe.state_of(step) == "completed"

    async def test_interrupt_of_nothing(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            gone = await probe.send(
                Interrupt(partition=0, entity=step.entity, claim="claim-1", turn=1, uids=(step.uid,))
            )
            assert gone == Settled("gone")
            dispatch = await probe.taken(step)
            gone = await probe.send(
                Interrupt(partition=0, entity=step.entity, claim="claim-1", turn=2, uids=(step.uid,))
            )
            assert gone == Settled("gone")
            await probe.finish(dispatch, "complete", run_limit=0)
            gone = await probe.send(
                Interrupt(partition=0, entity=step.entity, claim="claim-1", turn=1, uids=(step.uid,))
            )
            assert gone == Settled("gone")
            assert await probe.state_of(step) == "completed"
            other = probe.message()
            await probe.taken(other)
            cut = Interrupt(partition=0, entity=other.entity, claim="claim-1", turn=2, uids=(other.uid,))
            assert expect(Settled, await probe.send(cut)).settlement == "interrupt"
            for turn in (1, 3):
                gone = await probe.send(
                    Interrupt(partition=0, entity=other.entity, claim="claim-1", turn=turn, uids=(other.uid,))
                )
                assert gone == Settled("gone")

    async def test_interrupted_turn_cannot_finish(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name="erc3")
            dispatch = await probe.taken(step)
            await probe.send(
                Interrupt(
                    partition=0, entity=step.entity, claim="claim-1", turn=dispatch.turn, uids=(step.uid,)
                )
            )
            late = await probe.send(probe.finish_step(dispatch, "complete", state=b"too late"))
            assert late == Stale("turn")
            again = await probe.dispatch()
            late = await probe.send(probe.finish_step(dispatch, "complete", state=b"too late"))
            assert late == Stale("turn")
            assert expect(Finished, await probe.send(probe.finish_step(again, "complete"))).version == 0
