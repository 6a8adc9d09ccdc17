"""Conformance of journals: what an owner finds when it sweeps its partition."""

from __future__ import annotations

import pytest

from atomic_actors.journal._protocol import (
    Interrupt,
    Rejected,
    Replay,
    Settled,
    Stale,
    Sweep,
    Swept,
    Take,
    Taken,
    Unsettled,
    Withdraw,
)
from atomic_actors.testing.journal_suite._probe import POLICY, OpenProbe, expect, sweep


class Sweeps:
    """What is due, what was left behind, and what the owner itself has dispatched."""

    async def test_sweep(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            assert await sweep(probe) == Swept(due=(), unsettled=(), next_due_ms=0, outbound=())
            for name in "abc":
                await probe.accept(probe.message(f"account/{name}"))
            running = await probe.taken(probe.message("account/r"))
            waiting = await probe.taken(probe.message("account/w"))
            await probe.accept(probe.message("account/r"))
            finished = await probe.finish(waiting, "retry", entity="account/w", delay_ms=3_600_000)
            swept = await sweep(probe)
            assert set(swept.due) == {"account/a", "account/b", "account/c"}
            assert (swept.unsettled, swept.outbound) == ((), ())
            assert swept.next_due_ms == finished.offer.not_before_ms > probe.now_ms
            assert len((await sweep(probe, limit=2)).due) == 2
            await probe.finish(running, "complete", entity="account/r", run_limit=0)
            assert "account/r" in (await sweep(probe)).due
            audited = await probe.audit()
            assert (audited.indexed_ready, audited.indexed_dispatched) == (5, 0)

    async def test_an_owner_does_not_find_its_own_turns(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            assert await sweep(probe) == Swept(due=(), unsettled=(), next_due_ms=0, outbound=())
            assert await probe.dispatch() == dispatch

    async def test_sweep_finds_a_retry_when_it_is_due(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            await probe.finish(await probe.taken(probe.message()), "retry", delay_ms=20)
            await probe.pass_ms(20)
            swept = await sweep(probe)
            assert (swept.due, swept.next_due_ms) == (("account/a",), 0)

    async def test_what_is_behind_a_message_that_left_is_found(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            steps = [probe.message() for _ in range(2)]
            await probe.batch(*steps)
            await probe.send(Withdraw(0, "account/a", steps[0].uid))
            assert (await sweep(probe)).due == ("account/a",)
            dispatch = await probe.dispatch()
            assert dispatch.messages[0].uid == steps[1].uid
            await probe.finish(dispatch, "complete")
            assert await sweep(probe) == Swept(due=(), unsettled=(), next_due_ms=0, outbound=())

    @pytest.mark.parametrize("first", ["the head", "behind the head"])
    async def test_a_back_off_behind_what_left_is_waited_for(self, open_probe: OpenProbe, first: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            replays: list[str] = []
            dead: list[str] = []
            for _ in range(2):
                dispatch = await probe.taken(probe.message())
                await probe.finish(dispatch, "fail")
                dead.append(dispatch.messages[0].uid)
            finished = await probe.finish(await probe.taken(probe.message()), "retry", delay_ms=3_600_000)
            due_ms = finished.offer.not_before_ms
            for uid in dead:
                replays.insert(0, probe.new_uid())
                await probe.send(
                    Replay(partition=0, entity="account/a", uid=uid, new_uid=replays[0], at_head=True)
                )
            assert (await sweep(probe)).due == ("account/a",)
            for uid in replays if first == "the head" else reversed(replays):
                await probe.send(Withdraw(0, "account/a", uid))
            if first == "behind the head":
                assert await sweep(probe) == Swept(due=(), unsettled=(), next_due_ms=due_ms, outbound=())
            # Else it is a hint: a sweep may find the entity too early, but not again once it was taken in vain.
            assert (await probe.take()).not_before_ms == due_ms
            assert await sweep(probe) == Swept(due=(), unsettled=(), next_due_ms=due_ms, outbound=())

    async def test_sweep_is_bounded(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            for number in range(6):
                await probe.taken(probe.message(f"account/{number}"))
            await probe.take_over("claim-2")
            assert len((await sweep(probe, "claim-2", limit=4)).unsettled) == 4
            refused = await probe.send(Sweep(partition=0, claim="claim-2", limit=0))
            assert expect(Rejected, refused).code == "bad_step"

    async def test_sweep_names_dispatches_of_its_own_claim(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            left = await probe.taken(probe.message("account/left"))
            await probe.take_over("claim-2")
            first = probe.message("account/a")
            await probe.accept(first)
            late = Take(partition=0, entity="account/a", claim="claim-2", policy=POLICY)
            dispatch = expect(Taken, await probe.send(late)).offer.dispatch
            assert dispatch is not None
            await probe.finish(dispatch, "complete", claim="claim-2", run_limit=0)
            second = probe.message("account/a")
            await probe.accept(second)
            # A copy of the take that was answered long ago: its answer is discarded.
            await probe.send(late)
            unheard = Unsettled("account/a", 2, (second.uid,))
            left_behind = Unsettled("account/left", left.turn, (left.messages[0].uid,))
            for _ in range(2):
                assert await sweep(probe, "claim-2") == Swept(
                    due=(), unsettled=(left_behind,), next_due_ms=0, outbound=()
                )
                looked = await sweep(probe, "claim-2", own_from="")
                assert looked == Swept(
                    due=(), unsettled=(left_behind,), next_due_ms=0, outbound=(), own=(unheard,), own_next=""
                )
            assert await probe.send(Sweep(partition=0, claim="claim-1", own_from="")) == Stale("claim")
            # It can be taken, or given back; then it is not named any more.
            again = await probe.dispatch("account/a", "claim-2")
            assert (again.turn, again.messages[0].uid, again.messages[0].attempt) == (2, second.uid, 1)
            give_back = Interrupt(
                partition=0, entity="account/a", claim="claim-2", turn=2, uids=unheard.uids, began=False
            )
            assert await probe.send(give_back) == Settled("requeue")
            looked = await sweep(probe, "claim-2", own_from="")
            assert (looked.due, looked.own) == (("account/a",), ())

    async def test_own_dispatches_come_in_pages(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            # So many that no store holds them in its form for a few.
            names = [f"account/{number}" for number in range(700)]
            for first in range(0, len(names), 100):
                batch = [probe.message(name, claim="claim-1") for name in names[first : first + 100]]
                await probe.batch(*batch)
            found: set[str] = set()
            pages, begin = 0, ""
            while pages == 0 or begin:
                looked = await sweep(probe, limit=50, own_from=begin)
                assert len(looked.own) <= 200
                found.update(one.entity for one in looked.own)
                pages, begin = pages + 1, looked.own_next
                assert pages <= 100
            assert found == set(names)
            assert pages > 3
