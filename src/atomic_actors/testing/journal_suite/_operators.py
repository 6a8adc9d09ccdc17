"""Conformance: dead letters, replays, and what people look at."""

from __future__ import annotations

from typing import Any

import pytest

from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    CountKind,
    DeadLetterPage,
    Dispatch,
    EntityStatus,
    Expire,
    Expired,
    Interrupt,
    KindCount,
    ListDeadLetters,
    Offer,
    Park,
    Purge,
    Purged,
    Rejected,
    Replay,
    Replayed,
    Resume,
    Settled,
    Unsettled,
    unpack_body,
)
from atomic_actors.testing.journal_suite._probe import POLICY, OpenProbe, Probe, expect


async def letters(probe: Probe, **fields: Any) -> DeadLetterPage:
    """A page of partition 0's dead letters."""
    return expect(DeadLetterPage, await probe.send(ListDeadLetters(partition=0, **fields)))


def owners_replay(dead: Append, uid: str, *, claim: str = "claim-1", at_head: bool = False) -> Replay:
    """The replay of a letter that the partition's owner sends."""
    return Replay(
        partition=0,
        entity=dead.entity,
        uid=dead.uid,
        new_uid=uid,
        at_head=at_head,
        claim=claim,
        policy=POLICY,
    )


async def bury(probe: Probe, entity: str = "account/a", **fields: Any) -> Append:
    """A message that failed."""
    step = probe.message(entity, **fields)
    await probe.finish(await probe.taken(step), "fail", entity=entity)
    return step


class People:
    """Dead letters, replays, and looking."""

    async def test_letters_in_pages(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            steps = [await bury(probe, f"{kind}/{number}") for number in range(4) for kind in ("a", "ab")]
            names = [f"{step.entity}/{step.uid}" for step in steps]
            everything = await letters(probe)
            assert everything.complete
            assert {letter.message_id for letter in everything.letters} == set(names)
            places = [(letter.died_ms, letter.message_id) for letter in everything.letters]
            assert places == sorted(places)
            seen: list[str] = []
            after_ms, after_id = 0, ""
            for _ in range(10):
                page = await letters(probe, after_ms=after_ms, after_id=after_id, limit=3)
                assert len(page.letters) <= 3
                seen += [letter.message_id for letter in page.letters]
                if page.complete:
                    break
                last = list(page.letters)[-1]
                after_ms, after_id = last.died_ms, last.message_id
            assert seen == [message_id for _, message_id in places]
            of_kind = await letters(probe, kind="a", limit=5)
            assert {letter.message_id for letter in of_kind.letters} == set(names[::2])
            (one,) = (await letters(probe, message_id=names[3])).letters
            assert one.message_id == names[3]
            assert (await letters(probe, message_id="a/0/nobody")).letters == ()
            refused = await probe.send(ListDeadLetters(partition=0, limit=0))
            assert expect(Rejected, refused).code == "bad_step"

    async def test_purge(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first, second = await bury(probe), await bury(probe)
            names = tuple(f"account/a/{step.uid}" for step in (first, second))
            assert await probe.once(Purge(0, (names[0], "account/a/nobody"))) == Purged(1)
            assert await probe.once(Purge(0, names)) == Purged(1)
            assert await probe.once(Purge(0, names)) == Purged(0)
            assert (await letters(probe)).letters == ()
            audited = await probe.audit()
            assert (audited.counts["failed"], audited.dead_letters) == (2, 0)

    async def test_letters_expire(self, open_probe: OpenProbe) -> None:
        async with open_probe(dead_letter_ttl_ms=100, partition_dead_letter_limit=1) as probe:
            await probe.own()
            first = await bury(probe)
            await probe.pass_ms(101)
            assert (await letters(probe)).letters == ()
            gone = await probe.send(
                Replay(partition=0, entity="account/a", uid=first.uid, new_uid=probe.new_uid(), at_head=False)
            )
            assert expect(Rejected, gone).code == "unknown_message"
            # Its place is free.
            second = await bury(probe)
            assert await probe.state_of(second) == "failed"

    @pytest.mark.parametrize("event", ["fail", "interrupt"])
    async def test_no_room_parks_a_failing_entity(self, open_probe: OpenProbe, event: str) -> None:
        async with open_probe(partition_dead_letter_limit=1) as probe:
            await probe.own()
            buried = await bury(probe)
            step, behind = probe.message(), probe.message()
            dispatch = await probe.taken(step)
            await probe.accept(behind)
            finished = await probe.finish(dispatch, event)
            assert (finished.not_buried, finished.offer.parked) == ((step.uid,), True)
            assert await probe.state_of(step) == "enqueued"
            assert (await probe.inspect()).parked
            assert (await probe.audit()).dead_letters == 1
            # Other entities go on.
            other = await probe.taken(probe.message("account/b"))
            await probe.finish(other, "complete", entity="account/b")
            # A person makes room and lets it go on, in order.
            await probe.once(Purge(0, (f"account/a/{buried.uid}",)))
            await probe.once(Resume(0, "account/a"))
            again = await probe.dispatch()
            assert (again.messages[0].uid, again.messages[0].attempt) == (step.uid, 2)
            finished = await probe.finish(again, event)
            assert finished.not_buried == ()
            assert expect(Dispatch, finished.offer.dispatch).messages[0].uid == behind.uid

    async def test_no_room_in_the_middle_of_a_run(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_dead_letter_limit=1) as probe:
            steps = [probe.message(name="tdc3") for _ in range(4)]
            for step in steps:
                await probe.accept(step)
            await probe.own()
            run = await probe.dispatch(run_limit=4)
            # What ran behind the death cannot be given back: its effects are in the state.
            for following in ("complete", "refuse", "retry"):
                wrong = probe.finish_step(run, "complete", "fail", "fail", following, state=b"no")
                assert expect(Rejected, await probe.send(wrong)).code == "dead_letters_full"
            assert [await probe.state_of(step) for step in steps] == ["dispatched"] * 4
            finished = await probe.finish(run, "complete", "fail", "fail", "requeue", run_limit=4)
            assert (finished.not_buried, finished.offer.parked) == ((steps[2].uid,), True)
            words = [await probe.state_of(step) for step in steps]
            assert words == ["completed", "failed", "enqueued", "enqueued"]
            await probe.once(Resume(0, "account/a"))
            assert (await probe.dispatch(run_limit=4)).messages[0].uid == steps[2].uid

    async def test_no_room_for_an_expired_tell(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_dead_letter_limit=1) as probe:
            await probe.own()
            buried = await bury(probe)
            step = probe.message(deadline_ms=1)
            await probe.accept(step)
            assert await probe.send(Expire(0, "account/a", step.uid)) == Expired(False)
            assert (await probe.take()).parked
            assert await probe.state_of(step) == "enqueued"
            await probe.once(Purge(0, (f"account/a/{buried.uid}",)))
            await probe.once(Resume(0, "account/a"))
            assert (await probe.take()).expired == (step.uid, "")
            assert expect(Expired, await probe.send(Expire(0, "account/a", step.uid))).expired

    async def test_no_room_for_an_interrupted_turn(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_dead_letter_limit=1) as probe:
            await probe.own()
            await bury(probe)
            step = probe.message()
            await probe.taken(step)
            await probe.accept(probe.message())
            settled = await probe.send(
                Interrupt(partition=0, entity="account/a", claim="claim-1", turn=2, uids=(step.uid,))
            )
            # It may have run: it must not run again, room or no room; the entity waits for a person.
            assert expect(Settled, settled).settlement == "interrupt"
            assert await probe.state_of(step) == "interrupted"
            assert (await probe.take()).parked
            assert (await probe.audit()).dead_letters == 2

    async def test_a_recovery_without_room_stays_one(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_dead_letter_limit=1) as probe:
            await probe.own()
            await bury(probe)
            step = probe.message(name="emc3")
            cut = await probe.taken(step)
            await probe.send(
                Interrupt(partition=0, entity="account/a", claim="claim-1", turn=cut.turn, uids=(step.uid,))
            )
            recovery = await probe.dispatch()
            assert recovery.recovering
            finished = await probe.finish(recovery, "fail")
            assert (finished.not_buried, finished.offer.parked) == ((step.uid,), True)
            await probe.once(Resume(0, "account/a"))
            assert (await probe.dispatch()).recovering

    # Replays.

    @pytest.mark.parametrize("at_head", [False, True], ids=["tail", "head"])
    async def test_replay(self, open_probe: OpenProbe, at_head: bool) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe, key="k", waited_for=True)
            waiting = probe.message()
            await probe.accept(waiting)
            uid, other = probe.new_uid(), probe.new_uid()
            replay = Replay(partition=0, entity="account/a", uid=dead.uid, new_uid=uid, at_head=at_head)
            assert await probe.once(replay) == Replayed(uid, again=False)
            assert await probe.once(replay) == Replayed(uid, again=True)
            again = Replay(partition=0, entity="account/a", uid=dead.uid, new_uid=other, at_head=at_head)
            assert await probe.once(again) == Replayed(uid, again=True)
            order = [uid, waiting.uid] if at_head else [waiting.uid, uid]
            offer = await probe.take()
            for expected in order:
                dispatch = expect(Dispatch, offer.dispatch)
                (message,) = dispatch.messages
                assert (message.uid, message.attempt, message.interruptions) == (expected, 1, 0)
                if expected == uid:
                    body, old = unpack_body(message.body), unpack_body(dead.body)
                    assert (body.name, body.envelope) == (old.name, old.envelope)
                    assert (body.deadline_ms, body.waited_for, body.key) == (0, False, "")
                offer = (await probe.finish(dispatch, "complete")).offer
            assert offer == NOTHING
            (letter,) = (await letters(probe)).letters
            assert letter.replayed_as == uid
            assert await probe.state_of(dead) == "failed"
            assert (await probe.audit()).counts["accepted"] == 3

    async def test_the_owner_takes_what_it_replays(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe)
            await probe.finish(await probe.taken(probe.message()), "complete", state=b"state")
            uid = probe.new_uid()
            replay = owners_replay(dead, uid)
            offer = expect(Replayed, await probe.send(replay)).offer
            dispatch = expect(Dispatch, offer.dispatch)
            (message,) = dispatch.messages
            assert (message.uid, message.attempt, message.interruptions) == (uid, 1, 0)
            assert unpack_body(message.body).envelope == unpack_body(dead.body).envelope
            assert (dispatch.version, dispatch.state) == (1, b"state")
            # The answer was lost: the next one brings the same turn.
            again = expect(Replayed, await probe.once(replay))
            assert again == Replayed(uid, again=True, offer=offer)
            assert (await probe.finish(dispatch, "complete")).offer == NOTHING
            assert await probe.once(replay) == Replayed(uid, again=True)

    async def test_only_the_owner_takes_what_it_replays(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe)
            uid = probe.new_uid()
            replay = owners_replay(dead, uid, claim="claim-0")
            assert expect(Replayed, await probe.send(replay)).offer == NOTHING
            assert (await probe.dispatch()).messages[0].uid == uid

    @pytest.mark.parametrize("at_head", [False, True], ids=["tail", "head"])
    async def test_the_owner_hears_what_is_before_its_replay(
        self, open_probe: OpenProbe, at_head: bool
    ) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe)
            other = await bury(probe)
            finished = await probe.finish(await probe.taken(probe.message()), "retry", delay_ms=3_600_000)
            replay = owners_replay(dead, probe.new_uid(), at_head=at_head)
            offer = expect(Replayed, await probe.send(replay)).offer
            assert offer == (Offer(more=True) if at_head else finished.offer)
            if at_head:
                # A turn that runs goes on, and its commit takes what is next.
                running = await probe.dispatch()
                replay = owners_replay(other, probe.new_uid(), at_head=True)
                assert expect(Replayed, await probe.send(replay)).offer == Offer(more=True)
                await probe.finish(running, "complete", run_limit=0)

    async def test_a_parked_entity_is_not_taken_by_a_replay(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe)
            await probe.send(Park(0, "account/a"))
            for at_head in (False, True):
                replay = owners_replay(dead, probe.new_uid(), at_head=at_head)
                assert expect(Replayed, await probe.send(replay)).offer == Offer(parked=True)
            assert (await probe.inspect()).waiting == 1

    async def test_a_replay_tells_of_what_an_owner_before_left(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe)
            left = probe.message()
            dispatch = await probe.taken(left)
            await probe.take_over("claim-2")
            replay = owners_replay(dead, probe.new_uid(), claim="claim-2")
            offer = expect(Replayed, await probe.send(replay)).offer
            assert offer == Offer(unsettled=Unsettled("account/a", dispatch.turn, (left.uid,)))

    async def test_replay_under_an_id_that_is_taken(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead, done, running, waiting = await bury(probe), *(probe.message() for _ in range(3))
            await probe.finish(await probe.taken(done), "complete")
            await probe.taken(running)
            await probe.accept(waiting)
            for taken in (done, running, waiting):
                refused = await probe.send(
                    Replay(partition=0, entity="account/a", uid=dead.uid, new_uid=taken.uid, at_head=False)
                )
                assert expect(Rejected, refused).code == "bad_step"
            assert (await probe.audit()).counts["accepted"] == 4
            (letter,) = (await letters(probe)).letters
            assert letter.replayed_as == ""

    async def test_replay_of_an_expired_tell_runs(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = probe.message(deadline_ms=1)
            await probe.accept(dead)
            await probe.send(Expire(0, "account/a", dead.uid))
            uid = probe.new_uid()
            await probe.send(
                Replay(partition=0, entity="account/a", uid=dead.uid, new_uid=uid, at_head=False)
            )
            assert (await probe.dispatch()).messages[0].uid == uid

    async def test_replay_at_the_head_of_a_busy_entity(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe)
            running, waiting = probe.message(), probe.message()
            dispatch = await probe.taken(running)
            await probe.accept(waiting)
            uid = probe.new_uid()
            await probe.send(Replay(partition=0, entity="account/a", uid=dead.uid, new_uid=uid, at_head=True))
            assert await probe.dispatch() == dispatch
            # What ran goes back before the replay: the turn began first.
            finished = await probe.finish(dispatch, "retry")
            order: list[str] = []
            offer = finished.offer
            while offer.dispatch is not None:
                order.append(offer.dispatch.messages[0].uid)
                offer = (await probe.finish(offer.dispatch, "complete")).offer
            assert order == [running.uid, uid, waiting.uid]

    async def test_replay_before_a_back_off(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe)
            tried = probe.message()
            finished = await probe.finish(await probe.taken(tried), "retry", delay_ms=3_600_000)
            due_ms = finished.offer.not_before_ms
            uid = probe.new_uid()
            await probe.send(Replay(partition=0, entity="account/a", uid=dead.uid, new_uid=uid, at_head=True))
            # The back-off is the tried message's, and so are its attempts.
            dispatch = await probe.dispatch()
            assert (dispatch.messages[0].uid, dispatch.messages[0].attempt) == (uid, 1)
            finished = await probe.finish(dispatch, "complete")
            assert finished.offer.not_before_ms == due_ms
            assert (await probe.inspect()).not_before_ms == due_ms

    @pytest.mark.parametrize("tried", ["retry", "cut off"])
    async def test_no_run_takes_along_what_was_tried(self, open_probe: OpenProbe, tried: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await bury(probe, name="tdc3")
            steps = [probe.message(name="tdc3") for _ in range(2)]
            await probe.batch(*steps)
            run = await probe.dispatch(run_limit=2)
            if tried == "retry":
                await probe.finish(run, "retry", "requeue", run_limit=0)
            else:
                uids = tuple(step.uid for step in steps)
                await probe.send(
                    Interrupt(partition=0, entity="account/a", claim="claim-1", turn=run.turn, uids=uids)
                )
            uid = probe.new_uid()
            await probe.send(Replay(partition=0, entity="account/a", uid=dead.uid, new_uid=uid, at_head=True))
            alone = await probe.dispatch(run_limit=3)
            assert [message.uid for message in alone.messages] == [uid]
            finished = await probe.finish(alone, "complete", run_limit=3)
            alone = expect(Dispatch, finished.offer.dispatch)
            assert [message.uid for message in alone.messages] == [steps[0].uid]

    async def test_replay_of_nothing(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            done = probe.message()
            await probe.finish(await probe.taken(done), "complete")
            for uid in (done.uid, probe.new_uid()):
                refused = await probe.send(
                    Replay(partition=0, entity="account/a", uid=uid, new_uid=probe.new_uid(), at_head=False)
                )
                assert expect(Rejected, refused).code == "unknown_message"
            assert (await probe.audit()).counts["accepted"] == 1

    # Looking.

    async def test_inspect(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            nothing = EntityStatus(waiting=0, dispatched=0, parked=False, version=0, turn=0, not_before_ms=0)
            assert await probe.inspect() == nothing
            assert (await probe.audit()).counts["accepted"] == 0
            await probe.own()
            dispatch = await probe.taken(probe.message())
            await probe.accept(probe.message())
            expected = EntityStatus(waiting=1, dispatched=1, parked=False, version=0, turn=1, not_before_ms=0)
            assert await probe.inspect() == expected
            await probe.finish(dispatch, "complete", state=b"s", run_limit=0)
            expected = EntityStatus(waiting=1, dispatched=0, parked=False, version=1, turn=1, not_before_ms=0)
            assert await probe.inspect() == expected

    async def test_count_kind(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            await probe.taken(probe.message("account/a"))
            await probe.taken(probe.message("accounts/b"))
            for name in ("account/c", "account/d", "accountant/e"):
                await probe.accept(probe.message(name))
            await bury(probe, "account/f")
            assert await probe.send(CountKind(0, "account")) == KindCount(1, 2, 1)
            assert await probe.send(CountKind(0, "account/")) == KindCount(0, 0, 0)
            assert await probe.send(CountKind(0, "nobody")) == KindCount(0, 0, 0)

    async def test_ids_with_awkward_characters(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            names = ["a/{b}", "a/b:c", "a/b/c", "a/é 日本", "a/%s*?[x]", "a/-1", "a/m:x", "a/" + "x" * 512]
            for name in names:
                step = probe.message(name, key="key {with} : 日本")
                dispatch = await probe.taken(step)
                await probe.finish(dispatch, "fail", entity=name, state=name.encode())
                assert await probe.state_of(step) == "failed"
                assert (await probe.inspect(name)).version == 1
            found = {letter.message_id.rpartition("/")[0] for letter in (await letters(probe)).letters}
            assert found == set(names)
