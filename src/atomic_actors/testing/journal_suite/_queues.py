"""Conformance: one entity's log. Order, runs, deduplication, limits."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace

from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Appended,
    Dispatch,
    Expire,
    Expired,
    Interrupt,
    Park,
    Rejected,
    Result,
    Settled,
    Verdict,
    Withdraw,
    WithdrawAnswer,
)
from atomic_actors.testing.journal_suite._probe import OpenProbe, Probe, expect

TRANSACTIONAL = "tdc3"


async def fill(probe: Probe, *names: str, **fields: Any) -> list[Append]:
    """Waiting messages of these names, in order."""
    steps = [probe.message(name=name, **fields) for name in names]
    for step in steps:
        assert await probe.accept(step) == NOTHING
    return steps


def uids(dispatch: Dispatch) -> list[str]:
    """The dispatched messages' unique ids."""
    return [message.uid for message in dispatch.messages]


#: What the third of four appends of one call may be.
ODD_APPENDS = ("plain", "copy", "twin", "malformed", "late", "many", "keyed", "unclaimed", "transactional")


def _appends(probe: Probe, entity: str, odd: str) -> list[Append]:
    limit = 2 if odd == "many" else 0
    steps = [probe.message(entity, claim="claim-1", depth_limit=limit) for _ in range(4)]
    match odd:
        case "copy":
            steps[2] = steps[0]
        case "twin":
            steps[2] = replace(steps[2], uid=steps[1].uid)
        case "malformed":
            steps[2] = replace(steps[2], body=b"nothing that was packed")
        case "late":
            steps[2] = replace(steps[2], uid=probe.new_uid(age_ms=3_600_000))
        case "keyed":
            steps[2] = probe.message(entity, claim="claim-1", key="k", digest="d")
        case "unclaimed":
            steps[2] = replace(steps[2], claim="")
        case "transactional":
            steps[2] = probe.message(entity, TRANSACTIONAL, claim="claim-1")
        case _:
            pass
    return steps


def _unnamed(answers: list[Result], steps: list[Append]) -> str:
    """The answers, without the names that differ between two entities."""
    text = repr(answers).replace(steps[0].entity, "entity")
    for position, step in enumerate(steps):
        text = text.replace(step.uid, f"<{position}>").replace(repr(step.body), "body")
    return re.sub("[0-9a-f]{32}", "<before>", text)


async def _compare_appends(probe: Probe, before: str, odd: str) -> None:
    """Four appends in one call, and four in four calls: the same answers, and the same is stored."""
    alone, at_once = (_appends(probe, f"account/{before}-{odd}-{side}", odd) for side in ("one", "many"))
    answers = [answer for step in alone for answer in await probe.batch(step)]
    assert _unnamed(await probe.batch(*at_once), at_once) == _unnamed(answers, alone)
    statuses = [await probe.inspect(steps[0].entity) for steps in (alone, at_once)]
    assert statuses[0] == statuses[1]


class Queues:
    """One entity's log."""

    async def test_first_in_first_out(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *["edc3"] * 4)
            await probe.own()
            steps.append(probe.message(claim="claim-1"))
            assert (await probe.accept(steps[-1])).more
            offer = await probe.take()
            for turn, step in enumerate(steps, start=1):
                dispatch = expect(Dispatch, offer.dispatch)
                assert (dispatch.turn, uids(dispatch)) == (turn, [step.uid])
                offer = (await probe.finish(dispatch, "complete")).offer
            assert offer == NOTHING

    async def test_entities_do_not_wait_for_each_other(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first = await probe.taken(probe.message("account/a"))
            second = await probe.taken(probe.message("account/b"))
            assert (first.turn, second.turn) == (1, 1)
            await probe.finish(second, "complete", entity="account/b")
            assert (await probe.inspect("account/a")).dispatched == 1

    async def test_append_takes_only_for_the_owner_of_an_idle_entity(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            assert await probe.accept(probe.message("account/a", claim="claim-1")) == NOTHING
            await probe.own()
            assert await probe.accept(probe.message("account/b", claim="claim-0")) == NOTHING
            assert (await probe.accept(probe.message("account/c", claim="claim-1"))).dispatch is not None
            assert (await probe.accept(probe.message("account/c", claim="claim-1"))).more
            assert (await probe.accept(probe.message("account/a", claim="claim-1"))).more
            status = await probe.inspect("account/c")
            assert (status.waiting, status.dispatched, status.turn) == (1, 1, 1)

    async def test_appends_of_one_call_are_as_those_of_many(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            for odd in ODD_APPENDS:
                await _compare_appends(probe, "idle", odd)
            await probe.own("claim-0")
            for odd in ODD_APPENDS:
                for side in ("one", "many"):
                    await probe.taken(probe.message(f"account/unsettled-{odd}-{side}"), claim="claim-0")
            await probe.take_over("claim-1")
            for odd in ODD_APPENDS:
                await _compare_appends(probe, "unsettled", odd)
                await _compare_appends(probe, "owned", odd)
                for side in ("one", "many"):
                    await probe.taken(probe.message(f"account/taken-{odd}-{side}"))
                    await fill(probe, "edc3", entity=f"account/waiting-{odd}-{side}")
                    await probe.send(Park(0, f"account/parked-{odd}-{side}"))
                for before in ("taken", "waiting", "parked"):
                    await _compare_appends(probe, before, odd)

    async def test_a_finished_message_among_those_of_one_call(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            done = probe.message()
            await probe.finish(await probe.taken(done), "complete")
            await probe.taken(probe.message())
            answers = await probe.batch(probe.message(), done, probe.message(), probe.message())
            again = expect(Appended, answers.pop(1))
            assert (again.uid, again.duplicate, again.outcome) == (
                done.uid,
                True,
                b"completed\nreply\n\x00",
            )
            assert [expect(Appended, answer).duplicate for answer in answers] == [False] * 3
            assert (await probe.inspect()).waiting == 3

    async def test_appends_of_one_call_keep_their_order(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first, *others = (probe.message(claim="claim-1") for _ in range(6))
            answers = [expect(Appended, answer) for answer in await probe.batch(first, *others[:2])]
            answers += [expect(Appended, answer) for answer in await probe.batch(*others[2:])]
            assert [answer.uid for answer in answers] == [step.uid for step in (first, *others)]
            offer = answers[0].offer
            for step in (first, *others):
                dispatch = expect(Dispatch, offer.dispatch)
                assert uids(dispatch) == [step.uid]
                assert dispatch.messages[0].body == step.body
                offer = (await probe.finish(dispatch, "complete")).offer
            assert offer == NOTHING

    async def test_take_again_is_the_same_turn(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            first = await probe.taken(step)
            assert await probe.dispatch() == first
            assert expect(Appended, await probe.send(replace(step, claim="claim-1"))).offer.dispatch == first
            assert (await probe.inspect()).turn == 1

    async def test_draining_finish_takes_nothing(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            await fill(probe, "edc3")
            assert (await probe.finish(dispatch, "complete", run_limit=0)).offer.more
            status = await probe.inspect()
            assert (status.waiting, status.dispatched, status.turn) == (1, 0, 1)

    # Runs.

    async def test_run(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *[TRANSACTIONAL] * 5, "edc3", TRANSACTIONAL)
            await probe.own()
            run = await probe.dispatch(run_limit=3)
            assert uids(run) == [step.uid for step in steps[:3]]
            assert [message.body for message in run.messages] == [step.body for step in steps[:3]]
            assert [(message.attempt, message.interruptions) for message in run.messages] == [(1, 0)] * 3
            finished = await probe.finish(run, "complete", state=b"three", run_limit=10)
            assert finished.version == 1
            run = expect(Dispatch, finished.offer.dispatch)
            assert (run.turn, run.state) == (2, None)
            assert uids(run) == [step.uid for step in steps[3:5]]
            finished = await probe.finish(run, "complete", "refuse", run_limit=10)
            alone = expect(Dispatch, finished.offer.dispatch)
            assert uids(alone) == [steps[5].uid]
            finished = await probe.finish(alone, "complete", run_limit=10)
            assert uids(expect(Dispatch, finished.offer.dispatch)) == [steps[6].uid]
            assert [await probe.state_of(step) for step in steps[3:6]] == [
                "completed",
                "refused",
                "completed",
            ]

    async def test_a_run_behind_withdrawn_messages_keeps_its_limit(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *[TRANSACTIONAL] * 6)
            for step in steps[:2]:
                await probe.send(Withdraw(0, "account/a", step.uid))
            await probe.own()
            run = await probe.dispatch(run_limit=2)
            assert uids(run) == [step.uid for step in steps[2:4]]

    async def test_a_run_limit_beyond_what_waits(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            # More than a store could read in one go; how many it takes is its own affair.
            steps = [probe.message(name=TRANSACTIONAL) for _ in range(4_200)]
            for start in range(0, len(steps), 420):
                await probe.batch(*steps[start : start + 420])
            await probe.own()
            run = await probe.dispatch(run_limit=10_000)
            assert uids(run) == [step.uid for step in steps[: len(run.messages)]]
            finished = await probe.finish(run, "complete", run_limit=10_000)
            assert (finished.offer.dispatch is None) == (len(run.messages) == len(steps))

    async def test_run_ends_before_what_is_expired_or_gone(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *[TRANSACTIONAL] * 3)
            (late,) = await fill(probe, TRANSACTIONAL, deadline_ms=1)
            (last,) = await fill(probe, TRANSACTIONAL)
            await probe.send(Withdraw(0, "account/a", steps[1].uid))
            await probe.own()
            run = await probe.dispatch(run_limit=10)
            assert uids(run) == [steps[0].uid, steps[2].uid]
            finished = await probe.finish(run, "complete", run_limit=10)
            assert finished.offer.expired == (late.uid, "")
            await probe.send(Expire(0, "account/a", late.uid))
            assert uids(await probe.dispatch(run_limit=10)) == [last.uid]

    async def test_run_commits_its_prefix(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *[TRANSACTIONAL] * 5)
            await probe.own()
            run = await probe.dispatch(run_limit=5)
            finished = await probe.finish(run, "complete", "retry", "requeue", state=b"one", run_limit=0)
            assert finished.offer.more
            words = [await probe.state_of(step) for step in steps]
            assert words == ["completed", *["enqueued"] * 4]
            # The one that failed was attempted and goes alone; those behind it were not.
            again = await probe.dispatch(run_limit=5)
            assert uids(again) == [steps[1].uid]
            assert again.messages[0].attempt == 2
            finished = await probe.finish(again, "fail", run_limit=5)
            rest = expect(Dispatch, finished.offer.dispatch)
            assert uids(rest) == [step.uid for step in steps[2:]]
            assert [message.attempt for message in rest.messages] == [1, 1, 1]

    async def test_new_messages_come_behind_what_is_put_back(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *[TRANSACTIONAL] * 3)
            await probe.own()
            run = await probe.dispatch(run_limit=3)
            steps += await fill(probe, "edc3")
            offer = (await probe.finish(run, "requeue")).offer
            for step in steps:
                dispatch = expect(Dispatch, offer.dispatch)
                assert uids(dispatch) == [step.uid]
                offer = (await probe.finish(dispatch, "complete")).offer

    async def test_run_cut_off_goes_on_one_by_one(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *["tdc1"] * 3)
            await probe.own()
            run = await probe.dispatch(run_limit=3)
            settled = await probe.send(
                Interrupt(partition=0, entity="account/a", claim="claim-1", turn=1, uids=tuple(uids(run)))
            )
            assert settled == Settled("requeue")
            withdrawn = await probe.send(Withdraw(0, "account/a", steps[1].uid))
            assert withdrawn == WithdrawAnswer("enqueued")
            steps += await fill(probe, *["tdc1"] * 2)
            offer = await probe.take(run_limit=10)
            for step in steps[:3]:
                dispatch = expect(Dispatch, offer.dispatch)
                assert uids(dispatch) == [step.uid]
                (message,) = dispatch.messages
                # Any of them may have begun; the cut counts for each, but as no failure and never as the end.
                assert (message.attempt, message.interruptions) == (2, 1)
                offer = (await probe.finish(dispatch, "complete", run_limit=10)).offer
            assert uids(expect(Dispatch, offer.dispatch)) == [step.uid for step in steps[3:]]

    async def test_run_that_did_not_begin(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *[TRANSACTIONAL] * 3)
            await probe.own()
            run = await probe.dispatch(run_limit=3)
            cut = Interrupt(
                partition=0, entity="account/a", claim="claim-1", turn=1, uids=tuple(uids(run)), began=False
            )
            assert await probe.send(cut) == Settled("requeue")
            again = await probe.dispatch(run_limit=3)
            assert uids(again) == [step.uid for step in steps]
            assert [message.attempt for message in again.messages] == [1, 1, 1]

    @pytest.mark.parametrize(
        "events",
        [
            ("requeue", "complete", "complete"),
            ("retry", "complete", "complete"),
            ("requeue", "retry", "requeue"),
            ("retry", "retry", "requeue"),
            ("complete", "complete"),
            ("complete", "complete", "complete", "complete"),
            ("complete", "take", "complete"),
            ("complete", "", "complete"),
        ],
    )
    async def test_verdicts_that_make_no_sense(self, open_probe: OpenProbe, events: tuple[str, ...]) -> None:
        async with open_probe() as probe:
            steps = await fill(probe, *[TRANSACTIONAL] * 3)
            await probe.own()
            run = await probe.dispatch(run_limit=3)
            names = [*uids(run), probe.new_uid()]
            verdicts = tuple(Verdict(uid=uid, event=event) for uid, event in zip(names, events, strict=False))
            refused = await probe.send(probe.finish_step(run, "", verdicts=verdicts, state=b"no"))
            assert expect(Rejected, refused).code == "bad_step"
            assert [await probe.state_of(step) for step in steps] == ["dispatched"] * 3
            await probe.finish(run, "complete")

    # Deduplication.

    async def test_same_id_in_every_state(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            await probe.accept(step)
            again = expect(Appended, await probe.once(step))
            assert again == Appended(step.uid, duplicate=True, outcome=None, offer=NOTHING)
            dispatch = await probe.dispatch()
            again = expect(Appended, await probe.once(step))
            assert again == Appended(step.uid, duplicate=True, outcome=None, offer=NOTHING)
            await probe.finish(dispatch, "complete")
            again = expect(Appended, await probe.once(step))
            outcome = b"completed\nreply\n\x00"
            assert again == Appended(step.uid, duplicate=True, outcome=outcome, offer=NOTHING)
            assert (await probe.audit()).counts["accepted"] == 1

    async def test_same_key(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first = probe.message(key="k", digest="same")
            await probe.accept(first)
            for stage in ("enqueued", "dispatched", "finished"):
                repeated = probe.message(key="k", digest="same")
                again = expect(Appended, await probe.send(repeated))
                assert (again.uid, again.duplicate, again.outcome) == (first.uid, True, None), stage
                other = await probe.send(probe.message(key="k", digest="other"))
                assert expect(Rejected, other).code == "key_reused", stage
                if stage == "enqueued":
                    await probe.dispatch()
                elif stage == "dispatched":
                    await probe.finish(await probe.dispatch(), "complete")
            assert (await probe.audit()).counts["accepted"] == 1
            # A key belongs to an entity.
            await probe.accept(probe.message("account/b", key="k", digest="other"))

    async def test_a_key_that_is_not_the_bodys(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            keyed, plain = probe.message(key="k", digest="d"), probe.message()
            wrong = [replace(plain, key="k", digest="d"), replace(keyed, key="other"), replace(keyed, key="")]
            for step in wrong:
                assert expect(Rejected, await probe.send(step)).code == "bad_step"
            await probe.accept(probe.message())
            answers = await probe.batch(probe.message(), wrong[2], probe.message(), probe.message())
            assert expect(Rejected, answers.pop(1)).code == "bad_step"
            assert [expect(Appended, answer).duplicate for answer in answers] == [False] * 3
            assert (await probe.audit()).counts["accepted"] == 4

    @pytest.mark.parametrize("leave", ["withdraw", "expire"])
    async def test_a_key_that_is_another_messages_by_now(self, open_probe: OpenProbe, leave: str) -> None:
        async with open_probe(dedupe_ttl_ms=300) as probe:
            first = probe.message(key="k", digest="one", deadline_ms=1)
            await probe.accept(first)
            await probe.pass_ms(301)
            # In one call, so that the key's second life is not over before it is asked for.
            leaving = (Withdraw if leave == "withdraw" else Expire)(0, "account/a", first.uid, "k")
            second = probe.message(key="k", digest="two")
            answers = await probe.batch(second, leaving, probe.message(key="k", digest="three"))
            assert expect(Appended, answers[0]).uid == second.uid
            assert answers[1] in (WithdrawAnswer("withdrawn"), Expired(True, first.body))
            assert expect(Rejected, answers[2]).code == "key_reused"

    async def test_key_is_forgotten(self, open_probe: OpenProbe) -> None:
        async with open_probe(dedupe_ttl_ms=100) as probe:
            await probe.accept(probe.message(key="k", digest="one"))
            await probe.pass_ms(101)
            await probe.accept(probe.message(key="k", digest="two"))
            assert (await probe.audit()).counts["accepted"] == 2

    async def test_key_outlives_the_outcome(self, open_probe: OpenProbe) -> None:
        async with open_probe(result_ttl_ms=100) as probe:
            await probe.own()
            step = probe.message(key="k", digest="d")
            await probe.finish(await probe.taken(step), "complete")
            await probe.pass_ms(101)
            again = expect(Appended, await probe.send(step))
            assert again == Appended(step.uid, duplicate=True, outcome=None, offer=NOTHING)

    async def test_old_ids(self, open_probe: OpenProbe) -> None:
        async with open_probe(result_ttl_ms=60_000) as probe:
            old = probe.message(uid=probe.new_uid(age_ms=35_000))
            refused = await probe.send(old)
            assert expect(Rejected, refused).code == "unknown_message"
            await probe.accept(probe.message(uid=probe.new_uid(age_ms=25_000)))
            assert (await probe.audit()).counts["accepted"] == 1

    async def test_old_id_that_is_known(self, open_probe: OpenProbe) -> None:
        async with open_probe(result_ttl_ms=200) as probe:
            await probe.own()
            waiting, running, done = (probe.message(f"account/{name}") for name in "wrd")
            await probe.accept(waiting)
            await probe.taken(running)
            dispatch = await probe.taken(done)
            await probe.pass_ms(120)
            await probe.finish(dispatch, "complete", entity="account/d")
            for step in (waiting, running, done):
                again = expect(Appended, await probe.send(step))
                assert (again.uid, again.duplicate) == (step.uid, True)

    async def test_id_without_a_birth(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            refused = await probe.send(probe.message(uid="no hexadecimal digits here, sorry"))
            assert expect(Rejected, refused).code == "bad_step"

    # Limits.

    @pytest.mark.parametrize("claim", ["", "claim-1"])
    async def test_depth_of_an_entity_is_exact(self, open_probe: OpenProbe, claim: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            # A running message waits no more.
            dispatch = await probe.taken(probe.message())
            for _ in range(3):
                await probe.accept(probe.message(depth_limit=3, claim=claim))
            one_more = probe.message(depth_limit=3, claim=claim, key="k")
            refused = await probe.send(one_more)
            assert expect(Rejected, refused).code == "queue_depth_exceeded"
            assert await probe.state_of(one_more) == "absent"
            await probe.accept(probe.message("account/b", depth_limit=3, claim=claim))
            # The dispatch of the head makes room for one, and for one only.
            await probe.finish(dispatch, "complete")
            await probe.accept(one_more)
            refused = await probe.send(probe.message(depth_limit=3, claim=claim))
            assert expect(Rejected, refused).code == "queue_depth_exceeded"

    async def test_depth_after_withdrawal(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            first = probe.message(depth_limit=2)
            await probe.accept(first)
            await probe.accept(probe.message(depth_limit=2))
            await probe.send(Withdraw(0, "account/a", first.uid))
            await probe.accept(probe.message(depth_limit=2))
            refused = await probe.send(probe.message(depth_limit=2))
            assert expect(Rejected, refused).code == "queue_depth_exceeded"

    async def test_a_known_message_is_not_refused_for_depth(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_depth_limit=1) as probe:
            step = probe.message(depth_limit=1, key="k")
            await probe.accept(step)
            again = expect(Appended, await probe.send(step))
            assert again.duplicate
            again = expect(Appended, await probe.send(probe.message(depth_limit=1, key="k")))
            assert again.uid == step.uid

    async def test_quota_of_a_partition_is_exact(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_depth_limit=3) as probe:
            await probe.own()
            steps = [probe.message(f"account/{number}") for number in range(3)]
            for step in steps:
                await probe.accept(step)
            refused = await probe.send(probe.message("account/x", claim="claim-1"))
            assert expect(Rejected, refused).code == "queue_depth_exceeded"
            await probe.accept(probe.message("account/x", partition=1))
            await probe.dispatch("account/0")
            await probe.accept(probe.message("account/x"))
            refused = await probe.send(probe.message("account/y"))
            assert expect(Rejected, refused).code == "queue_depth_exceeded"

    async def test_quota_of_a_partition_holds_within_a_call(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_depth_limit=5) as probe:
            entities = ["account/a"] * 3 + ["account/b", "account/c", "account/d"] + ["account/a"] * 3
            answers = await probe.batch(*(probe.message(entity) for entity in entities))
            for answer in answers[:5]:
                assert not expect(Appended, answer).duplicate
            for answer in answers[5:]:
                assert expect(Rejected, answer).code == "queue_depth_exceeded"
            answers = await probe.batch(*(probe.message(partition=1) for _ in range(7)))
            assert [isinstance(answer, Appended) for answer in answers] == [True] * 5 + [False] * 2
