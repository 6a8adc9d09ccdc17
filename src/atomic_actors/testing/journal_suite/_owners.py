"""Conformance: who owns what. Leases, fences, settling, parking, sweeping."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Claimed,
    ClaimPartition,
    Defer,
    Deferred,
    Dispatch,
    Finish,
    Interrupt,
    LeaseHeld,
    Outgoing,
    Park,
    Parked,
    Rejected,
    RelayAck,
    RelayRead,
    Release,
    Released,
    Renew,
    Renewed,
    Replay,
    Resume,
    Settled,
    Stale,
    Step,
    Sweep,
    Swept,
    Take,
    Unsettled,
    Verdict,
    Withdraw,
)
from atomic_actors.testing.journal_suite._probe import POLICY, OpenProbe, expect, sweep


class Owners:
    """Leases and what they fence."""

    async def test_claim_renew_release(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            assert (await probe.own()).epoch == 1
            for renewals in (1, 2):
                assert await probe.once(Renew(0, "claim-1")) == Renewed(renewals)
            assert await probe.send(Renew(0, "claim-2")) == Stale("claim")
            assert await probe.send(Release(0, "claim-2")) == Stale("claim")
            assert await probe.send(Release(0, "claim-1")) == Released()
            assert await probe.send(Renew(0, "claim-1")) == Stale("claim")
            assert (await probe.own("claim-2")).epoch == 2
            assert await probe.once(Renew(0, "claim-2")) == Renewed(1)

    async def test_claim_of_a_held_lease(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            first = await probe.own()
            await probe.once(Renew(0, "claim-1"))
            held = LeaseHeld(b"node", first.epoch, "claim-1", 1)
            for expected_claim, expected_renewals in [
                ("", 0),
                ("claim-1", 0),
                ("claim-1", 2),
                ("claim-0", 1),
            ]:
                step = ClaimPartition(
                    partition=0,
                    claim="claim-2",
                    node=b"other",
                    expected_claim=expected_claim,
                    expected_renewals=expected_renewals,
                )
                assert await probe.send(step) == held
            second = expect(
                Claimed,
                await probe.send(
                    ClaimPartition(
                        partition=0,
                        claim="claim-2",
                        node=b"other",
                        expected_claim="claim-1",
                        expected_renewals=1,
                    )
                ),
            )
            assert second.epoch == first.epoch + 1
            assert second.incarnation == first.incarnation != 0
            held = LeaseHeld(b"other", second.epoch, "claim-2", 0)
            assert (
                await probe.send(
                    ClaimPartition(
                        partition=0,
                        claim="claim-1",
                        node=b"node",
                        expected_claim="claim-1",
                        expected_renewals=1,
                    )
                )
                == held
            )
            assert await probe.send(Renew(0, "claim-1")) == Stale("claim")

    async def test_own_claim_again(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            first = await probe.own()
            await probe.once(Renew(0, "claim-1"))
            assert (await probe.own()).epoch == first.epoch
            assert await probe.once(Renew(0, "claim-1")) == Renewed(2)

    async def test_an_empty_claim_is_nobodys(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            refused = await probe.send(ClaimPartition(partition=0, claim="", node=b"node"))
            assert expect(Rejected, refused).code == "bad_step"
            assert await probe.accept(probe.message()) == NOTHING
            assert await probe.send(Take(partition=0, entity="account/a", claim="", policy=POLICY)) == Stale(
                "claim"
            )
            assert await probe.send(Renew(0, "")) == Stale("claim")

    async def test_partitions_are_apart(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own("claim-1", 0)
            await probe.own("claim-2", 1)
            assert await probe.send(
                Take(partition=1, entity="account/a", claim="claim-1", policy=POLICY)
            ) == Stale("claim")
            await probe.accept(probe.message("account/a", partition=0))
            assert await probe.take("account/a", "claim-2", partition=1) == NOTHING
            assert (await probe.audit(1)).counts["accepted"] == 0

    async def test_release_waits_for_what_runs(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            refused = await probe.send(Release(0, "claim-1"))
            assert expect(Rejected, refused).code == "dispatched"
            assert await probe.once(Renew(0, "claim-1")) == Renewed(1)
            await probe.finish(dispatch, "complete")
            assert await probe.send(Release(0, "claim-1")) == Released()

    # Fences.

    @pytest.mark.parametrize("claim", ["claim-1", "claim-9", ""])
    async def test_stale_claims(self, open_probe: OpenProbe, claim: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            dispatch = await probe.taken(step)
            await probe.accept(probe.message("account/b"))
            await probe.take_over("claim-2")
            before = await probe.audit()
            uid = dispatch.messages[0].uid
            verdicts = (Verdict(uid=uid, event="complete"),)
            steps: list[Step] = [
                Take(partition=0, entity="account/a", claim=claim, policy=POLICY),
                Take(partition=0, entity="account/b", claim=claim, policy=POLICY),
                Finish(
                    partition=0,
                    entity="account/a",
                    claim=claim,
                    turn=1,
                    verdicts=verdicts,
                    state=b"stale",
                    expected_version=0,
                    policy=POLICY,
                ),
                Interrupt(partition=0, entity="account/a", claim=claim, turn=1, uids=(uid,)),
                Sweep(partition=0, claim=claim),
                RelayRead(0, claim, 1),
                RelayAck(partition=0, claim=claim, target=1, last=5),
                Release(0, claim),
                Renew(0, claim),
            ]
            for stale in steps:
                assert await probe.send(stale) == Stale("claim"), stale
            assert await probe.audit() == before
            assert await probe.state_of(step) == "dispatched"
            assert (await probe.inspect()).version == 0

    async def test_a_stale_claim_refuses_no_message(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own("claim-2")
            step = probe.message(claim="claim-1")
            assert await probe.accept(step) == NOTHING
            assert (await probe.dispatch(claim="claim-2")).messages[0].uid == step.uid

    async def test_a_claim_that_was_lost_and_won_again(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name="erc3")
            dispatch = await probe.taken(step)
            await probe.take_over("claim-2")
            await probe.take_over("claim-3")
            # The same node owns it again, by another claim: what ran under the first one cannot commit.
            stale = await probe.send(probe.finish_step(dispatch, "complete", state=b"old", claim="claim-3"))
            assert stale == Stale("turn")
            offer = await probe.take(claim="claim-3")
            assert offer.unsettled == Unsettled("account/a", 1, (step.uid,))

    async def test_turns(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            never = Finish(
                partition=0,
                entity="account/a",
                claim="claim-1",
                turn=1,
                verdicts=(),
                state=None,
                expected_version=0,
                policy=POLICY,
            )
            assert await probe.send(never) == Stale("turn")
            steps = [probe.message() for _ in range(3)]
            first = await probe.taken(steps[0])
            for step in steps[1:]:
                await probe.accept(step)
            for turn in (0, 2):
                assert await probe.send(probe.finish_step(first, "complete", turn=turn)) == Stale("turn")
            finished = await probe.finish(first, "complete", state=b"1")
            second = expect(Dispatch, finished.offer.dispatch)
            # The stored answer, and the turn that it brought, again.
            assert await probe.finish(first, "complete", state=b"1") == finished
            finished = await probe.finish(second, "complete", state=b"2")
            late = await probe.send(probe.finish_step(first, "complete", state=b"1"))
            assert late == Stale("turn")
            assert (await probe.inspect()).version == 2
            third = expect(Dispatch, finished.offer.dispatch)
            assert third.messages[0].uid == steps[2].uid

    async def test_a_commit_is_not_answered_to_another_claim(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            finish = probe.finish_step(dispatch, "complete", state=b"1")
            await probe.send(finish)
            await probe.take_over("claim-2")
            assert await probe.send(replace(finish, claim="claim-2")) == Stale("turn")
            assert await probe.send(finish) == Stale("claim")
            assert (await probe.inspect()).version == 1

    # Settling what an earlier claim left behind.

    async def test_settling(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            stamps = {"account/d": "edc3", "account/r": "erc3", "account/m": "emc3", "account/t": "tdc3"}
            steps = {entity: probe.message(entity, stamp) for entity, stamp in stamps.items()}
            for step in steps.values():
                await probe.taken(step)
            await probe.take_over("claim-2")
            swept = await sweep(probe, "claim-2")
            left = {unsettled.entity: unsettled for unsettled in swept.unsettled}
            assert left == {entity: Unsettled(entity, 1, (step.uid,)) for entity, step in steps.items()}
            assert swept.due == ()
            refused = await probe.send(Release(0, "claim-2"))
            assert expect(Rejected, refused).code == "dispatched"
            words: dict[str, str] = {}
            for entity, unsettled in left.items():
                offer = await probe.take(entity, "claim-2")
                assert offer.unsettled == unsettled
                settled = await probe.send(
                    Interrupt(
                        partition=0, entity=entity, claim="claim-2", turn=unsettled.turn, uids=unsettled.uids
                    )
                )
                words[entity] = expect(Settled, settled).settlement
            assert words == {
                "account/d": "interrupt", "account/r": "requeue", "account/m": "recover",
                "account/t": "requeue",
            }  # fmt: skip
            swept = await sweep(probe, "claim-2")
            assert (set(swept.due), swept.unsettled) == ({"account/r", "account/m", "account/t"}, ())
            assert (await probe.dispatch("account/m", "claim-2")).recovering
            assert not (await probe.dispatch("account/r", "claim-2")).recovering

    async def test_a_claim_that_comes_back_looks_again(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            assert (await sweep(probe)).unsettled == ()
            await probe.take_over("claim-2")
            step = probe.message()
            await probe.taken(step, "claim-2")
            await probe.take_over("claim-1")
            assert (await sweep(probe)).unsettled == (Unsettled("account/a", 1, (step.uid,)),)

    async def test_append_meets_an_old_dispatch(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            await probe.taken(step)
            await probe.take_over("claim-2")
            offer = await probe.accept(probe.message(claim="claim-2"))
            assert offer.unsettled == Unsettled("account/a", 1, (step.uid,))

    async def test_settling_a_run(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            steps: list[Append] = [probe.message(name="tdc3") for _ in range(3)]
            for step in steps:
                await probe.accept(step)
            await probe.own()
            await probe.dispatch(run_limit=3)
            await probe.take_over("claim-2")
            offer = await probe.take(claim="claim-2", run_limit=3)
            names = tuple(step.uid for step in steps)
            assert offer.unsettled == Unsettled("account/a", 1, names)
            refused = await probe.send(
                Interrupt(partition=0, entity="account/a", claim="claim-2", turn=1, uids=names[:2])
            )
            assert expect(Rejected, refused).code == "bad_step"
            assert await probe.send(
                Interrupt(partition=0, entity="account/a", claim="claim-2", turn=1, uids=names)
            ) == Settled("requeue")
            dispatch = await probe.dispatch(claim="claim-2", run_limit=3)
            assert [message.uid for message in dispatch.messages] == [steps[0].uid]

    @pytest.mark.parametrize(("stamp", "parks"), [("edc3", False), ("edp3", True), ("erp3", False)])
    async def test_settling_parks_by_the_stamp(self, open_probe: OpenProbe, stamp: str, parks: bool) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name=stamp)
            await probe.taken(step)
            await probe.accept(probe.message())
            await probe.send(
                Interrupt(partition=0, entity="account/a", claim="claim-1", turn=1, uids=(step.uid,))
            )
            assert (await probe.inspect()).parked is parks
            assert (await probe.take()).parked is parks

    # Parking.

    async def test_park_and_resume(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            await probe.accept(step)
            assert await probe.once(Park(0, "account/a")) == Parked(False)
            assert await probe.once(Park(0, "account/a")) == Parked(True)
            assert (await probe.take()).parked
            assert (await probe.accept(probe.message(claim="claim-1"))).parked
            assert (await sweep(probe)).due == ()
            status = await probe.inspect()
            assert (status.parked, status.waiting) == (True, 2)
            assert await probe.once(Resume(0, "account/a")) == Parked(True)
            assert await probe.once(Resume(0, "account/a")) == Parked(False)
            assert (await sweep(probe)).due == ("account/a",)
            assert (await probe.dispatch()).messages[0].uid == step.uid

    async def test_a_parked_entity_stays_out_of_sweeps(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await probe.taken(probe.message())
            await probe.finish(dead, "fail")
            steps = [probe.message() for _ in range(2)]
            await probe.batch(*steps)
            for entity in ("account/a", "account/b", "account/c"):
                await probe.once(Park(0, entity))
            await probe.send(Withdraw(0, "account/a", steps[0].uid))
            assert (await sweep(probe)).due == ()
            uid = dead.messages[0].uid
            await probe.send(
                Replay(partition=0, entity="account/a", uid=uid, new_uid=probe.new_uid(), at_head=True)
            )
            assert (await sweep(probe)).due == ()
            assert await probe.send(Defer(0, "account/a", "claim-1", 0)) == Deferred(False)
            # What comes to an entity that had nothing.
            dispatch = await probe.taken(probe.message("account/d"))
            outbox = (Outgoing(partition=0, entity="account/b", uid=probe.new_uid(), body=probe.body()),)
            await probe.finish(dispatch, "complete", entity="account/d", outbox=outbox)
            await probe.accept(probe.message("account/c"))
            assert (await sweep(probe)).due == ()
            assert (await probe.audit()).indexed_ready == 0
            await probe.once(Resume(0, "account/b"))
            assert (await sweep(probe)).due == ("account/b",)

    async def test_a_running_entity_stays_out_of_sweeps(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dead = await probe.taken(probe.message())
            await probe.finish(dead, "fail")
            running = await probe.taken(probe.message())
            # What comes while nothing waits.
            dispatch = await probe.taken(probe.message("account/b"))
            sent = Outgoing(partition=0, entity="account/a", uid=probe.new_uid(), body=probe.body())
            await probe.finish(dispatch, "complete", entity="account/b", outbox=(sent,))
            assert (await sweep(probe)).due == ()
            # What comes to the head, and what leaves it.
            uid, replayed = dead.messages[0].uid, probe.new_uid()
            await probe.send(Replay(partition=0, entity="account/a", uid=uid, new_uid=replayed, at_head=True))
            assert (await sweep(probe)).due == ()
            await probe.send(Withdraw(0, "account/a", replayed))
            assert (await sweep(probe)).due == ()
            await probe.once(Park(0, "account/a"))
            await probe.once(Resume(0, "account/a"))
            assert await probe.send(Defer(0, "account/a", "claim-1", 0)) == Deferred(False)
            assert (await sweep(probe)).due == ()
            assert (await probe.audit()).indexed_ready == 0
            assert await probe.dispatch() == running

    async def test_a_back_off_outlasts_a_park(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            finished = await probe.finish(await probe.taken(probe.message()), "retry", delay_ms=3_600_000)
            due_ms = finished.offer.not_before_ms
            await probe.once(Park(0, "account/a"))
            assert (await sweep(probe)).next_due_ms == 0
            await probe.once(Resume(0, "account/a"))
            assert await sweep(probe) == Swept(due=(), unsettled=(), next_due_ms=due_ms, outbound=())

    # Leaving what cannot be run.

    async def test_defer(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            assert await probe.once(Defer(0, "account/a", "claim-1", 3_600_000)) == Deferred(False)
            step = probe.message()
            await probe.accept(step)
            assert (await sweep(probe)).due == ("account/a",)
            assert await probe.once(Defer(0, "account/a", "claim-1", 3_600_000)) == Deferred(True)
            assert (await sweep(probe)).due == ()
            assert (await sweep(probe, ahead_ms=3_599_000)).due == ()
            assert (await sweep(probe, ahead_ms=3_601_000)).due == ("account/a",)
            # Only sweeps do not see it.
            await probe.accept(probe.message())
            assert (await sweep(probe)).due == ()
            assert await probe.send(Defer(0, "account/a", "other", 0)) == Stale("claim")
            assert expect(Rejected, await probe.send(Defer(0, "account/a", "claim-1", -1))).code == "bad_step"
            dispatch = await probe.dispatch()
            assert dispatch.messages[0].uid == step.uid
            assert await probe.send(Defer(0, "account/a", "claim-1", 0)) == Deferred(False)
            assert (await probe.inspect()).dispatched == 1
            await probe.finish(dispatch, "complete", run_limit=0)
            assert (await sweep(probe)).due == ("account/a",)

    async def test_defer_what_is_given_back(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            await probe.taken(step)
            settled = await probe.send(
                Interrupt(
                    partition=0, entity="account/a", claim="claim-1", turn=1, uids=(step.uid,), began=False
                )
            )
            assert settled == Settled("requeue")
            assert await probe.send(Defer(0, "account/a", "claim-1", 3_600_000)) == Deferred(True)
            assert (await sweep(probe)).due == ()
            again = await probe.dispatch()
            assert (again.turn, again.messages[0].attempt) == (2, 1)

    async def test_a_back_off_outlasts_a_defer(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            finished = await probe.finish(await probe.taken(probe.message()), "retry", delay_ms=3_600_000)
            due_ms = finished.offer.not_before_ms
            assert await probe.send(Defer(0, "account/a", "claim-1", 0)) == Deferred(True)
            assert await sweep(probe) == Swept(due=(), unsettled=(), next_due_ms=due_ms, outbound=())

    async def test_park_an_entity_without_messages(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            assert await probe.once(Resume(0, "account/a")) == Parked(False)
            assert await probe.once(Park(0, "account/a")) == Parked(False)
            assert (await probe.accept(probe.message(claim="claim-1"))).parked
            assert (await probe.inspect()).dispatched == 0

    async def test_park_during_a_turn(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            await probe.accept(probe.message())
            await probe.once(Park(0, "account/a"))
            assert await probe.dispatch() == dispatch
            finished = await probe.finish(dispatch, "complete", state=b"done")
            assert (finished.version, finished.offer.parked) == (1, True)

    @pytest.mark.parametrize("event", ["complete", "fail", "retry"])
    async def test_finish_parks(self, open_probe: OpenProbe, event: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            await probe.accept(probe.message())
            assert (await probe.finish(dispatch, event, park=True)).offer.parked
            assert (await sweep(probe)).due == ()

    # Sweeping.
