"""Conformance: what an owner does after the store has lost history."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from atomic_actors.journal._protocol import (
    Claimed,
    ClaimPartition,
    DeadLetterPage,
    Interrupt,
    LeaseHeld,
    ListDeadLetters,
    Outgoing,
    Rejected,
    RelayAck,
    RelayAcked,
    Relayed,
    RelayEntry,
    RelayIn,
    RelayPage,
    RelayRead,
    Settled,
    SettleLost,
    Stale,
    Sweep,
    Swept,
)
from atomic_actors.testing.journal_suite._probe import POLICY, OpenProbe, Probe, expect


async def claim_anew(
    probe: Probe, claim: str = "claim-2", was: str = "claim-1", epoch_above: int = 0
) -> Claimed:
    """Claim partition 0 with a new incarnation, in the place of another claim that was never renewed."""
    step = ClaimPartition(
        partition=0,
        claim=claim,
        node=b"node",
        expected_claim=was,
        expected_renewals=0,
        new_incarnation=True,
        epoch_above=epoch_above,
    )
    return expect(Claimed, await probe.send(step))


async def send_out(probe: Probe, number: int, claim: str = "claim-1") -> list[str]:
    """Commit a turn of a new entity that sends messages to partition 1; returns their unique ids."""
    entity = f"account/{probe.new_uid()}"
    dispatch = await probe.taken(probe.message(entity), claim)
    outbox = tuple(
        Outgoing(partition=1, entity="account/t", uid=probe.new_uid(), body=probe.body())
        for _ in range(number)
    )
    await probe.finish(dispatch, "complete", entity=entity, claim=claim, outbox=outbox)
    return [message.uid for message in outbox]


async def read(probe: Probe, claim: str = "claim-2", limit: int = 100) -> RelayPage:
    return expect(RelayPage, await probe.send(RelayRead(0, claim, 1, limit)))


def lost(uid: str, claim: str = "claim-1", **fields: int) -> SettleLost:
    """A step for a message of `account/a` whose first dispatch was lost."""
    numbers = {"attempt": 1, "interruptions": 0, **fields}
    return SettleLost(
        partition=0,
        entity="account/a",
        claim=claim,
        uid=uid,
        policy=POLICY,
        attempt=numbers["attempt"],
        interruptions=numbers["interruptions"],
        recovering=bool(numbers.get("recovering")),
    )


class Losses:
    """New incarnations, and messages whose dispatch was lost."""

    async def test_a_new_incarnation(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            first = await probe.own()
            again = await claim_anew(probe)
            assert again.incarnation > first.incarnation
            assert again.epoch == first.epoch + 1
            # The same claim again is the same incarnation, and a plain claim leaves it as it is.
            assert await claim_anew(probe) == again
            assert (await probe.take_over("claim-3")).incarnation == again.incarnation

    async def test_two_incarnations_within_a_millisecond(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            # In one call, at one time.
            claims = [ClaimPartition(partition=0, claim="claim-1", node=b"node", new_incarnation=True)]
            claims += [
                ClaimPartition(
                    partition=0,
                    claim=f"claim-{number}",
                    node=b"node",
                    expected_claim=f"claim-{number - 1}",
                    expected_renewals=0,
                    new_incarnation=True,
                )
                for number in (2, 3)
            ]
            answers = [expect(Claimed, answer).incarnation for answer in await probe.batch(*claims)]
            assert answers == sorted(set(answers))

    async def test_a_new_incarnation_of_a_partition_that_is_gone(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            claimed = await claim_anew(probe, was="", epoch_above=7)
            assert (claimed.epoch, claimed.commit) == (8, 0)
            assert claimed.incarnation > 0
            assert (await claim_anew(probe, "claim-3", was="claim-2", epoch_above=3)).epoch == 9

    async def test_a_held_lease_is_not_taken_by_a_new_incarnation(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            first = await probe.own()
            step = ClaimPartition(
                partition=0,
                claim="claim-2",
                node=b"node",
                expected_claim="claim-0",
                expected_renewals=0,
                new_incarnation=True,
            )
            assert await probe.send(step) == LeaseHeld(b"node", first.epoch, "claim-1", 0)
            assert (await probe.own()).incarnation == first.incarnation

    async def test_streams_begin_anew_behind_what_waits(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            incarnation = (await probe.own()).incarnation
            before = await send_out(probe, 3)
            await probe.send(
                RelayAck(partition=0, claim="claim-1", target=1, last=1, incarnation=incarnation)
            )
            anew = await claim_anew(probe)
            after = await send_out(probe, 2, "claim-2")
            page = await read(probe)
            assert page.incarnation == incarnation
            assert [(entry.number, entry.uid) for entry in page.entries] == [
                (2, before[1]), (3, before[2])
            ]  # fmt: skip
            assert [entry.number for entry in (await read(probe, limit=1)).entries] == [2]
            assert await probe.send(
                RelayAck(partition=0, claim="claim-2", target=1, last=2, incarnation=incarnation)
            ) == RelayAcked(3)
            assert [entry.number for entry in (await read(probe)).entries] == [3]
            # An answer to a page of this incarnation cannot be there yet: it says nothing of the old one.
            assert await probe.once(
                RelayAck(partition=0, claim="claim-2", target=1, last=9, incarnation=anew.incarnation)
            ) == RelayAcked(3)
            assert await probe.send(
                RelayAck(partition=0, claim="claim-2", target=1, last=3, incarnation=incarnation)
            ) == RelayAcked(2)
            page = await read(probe)
            assert page.incarnation == anew.incarnation
            assert [(entry.number, entry.uid) for entry in page.entries] == [(1, after[0]), (2, after[1])]
            assert expect(Swept, await probe.send(Sweep(partition=0, claim="claim-2"))).outbound == (1,)
            assert (await probe.audit()).outbound == 2
            assert await probe.send(
                RelayAck(partition=0, claim="claim-2", target=1, last=2, incarnation=anew.incarnation)
            ) == RelayAcked(0)
            assert (await read(probe)) == RelayPage(anew.incarnation, ())
            assert expect(Swept, await probe.send(Sweep(partition=0, claim="claim-2"))).outbound == ()

    async def test_two_losses_before_a_stream_was_read(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            incarnations = [(await probe.own()).incarnation]
            sent = await send_out(probe, 2)
            for number in (2, 3):
                claimed = await claim_anew(probe, f"claim-{number}", was=f"claim-{number - 1}")
                incarnations.append(claimed.incarnation)
                sent += await send_out(probe, number, f"claim-{number}")
            await probe.own("claim-t", 1)
            arrived: list[str] = []
            while (page := await read(probe, "claim-3", limit=2)).entries:
                assert page.incarnation == incarnations[0]
                arrived += [entry.uid for entry in page.entries]
                relayed = expect(
                    Relayed,
                    await probe.send(
                        RelayIn(partition=1, source=0, incarnation=page.incarnation, entries=page.entries)
                    ),
                )
                step = RelayAck(
                    partition=0, claim="claim-3", target=1, last=relayed.last, incarnation=page.incarnation
                )
                if expect(RelayAcked, await probe.send(step)).left in (5, 3):
                    incarnations.pop(0)
            assert arrived == sent
            assert (await probe.audit()).outbound == 0
            assert (await probe.audit(1)).counts["accepted"] == 7

    async def test_a_target_that_lost_what_it_had_taken(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own("claim-t", 1)
            entries = [RelayEntry(n, "account/t", probe.new_uid(), probe.body()) for n in range(1, 10)]
            assert await probe.send(
                RelayIn(partition=1, source=0, incarnation=77, entries=(), after_loss=True)
            ) == Relayed(0, ())
            # Of what it had taken, the first two are all it knows; the source has forgotten up to the fifth.
            await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=tuple(entries[:2])))
            rest = tuple(entries[5:8])
            assert (
                expect(
                    Rejected, await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=rest))
                ).code
                == "stream_gap"
            )
            assert await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=())) == Relayed(
                2, ()
            )
            step = RelayIn(partition=1, source=0, incarnation=77, entries=rest, after_loss=True)
            assert await probe.once(step) == Relayed(8, ("account/t",))
            assert await probe.once(step) == Relayed(8, ())
            # Only what is before the first: a gap behind it is one still, and the past stays away.
            holes = (entries[0], entries[2])
            assert await probe.send(
                RelayIn(partition=1, source=0, incarnation=77, entries=holes, after_loss=True)
            ) == Relayed(8, ())
            later = RelayEntry(11, "account/t", probe.new_uid(), probe.body())
            wrong = RelayIn(
                partition=1, source=0, incarnation=77, entries=(entries[8], later), after_loss=True
            )
            assert expect(Rejected, await probe.send(wrong)).code == "stream_gap"
            assert (
                expect(
                    Relayed,
                    await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=(entries[8],))),
                ).last
                == 9
            )
            assert (await probe.audit(1)).counts["accepted"] == 6

    # Messages whose dispatch was lost.

    @pytest.mark.parametrize("stamp", ["edc3", "edp3", "tdc1", "erc1", "emc1"])
    async def test_an_effect_that_may_have_happened_is_dead(self, open_probe: OpenProbe, stamp: str) -> None:
        async with open_probe() as probe:
            await probe.own()
            step, behind = probe.message(name=stamp), probe.message(name="tdc3")
            await probe.accept(step)
            await probe.accept(behind)
            assert await probe.send(lost(step.uid)) == Settled("interrupt", (step.body,))
            assert await probe.state_of(step) == "interrupted"
            counts = (await probe.audit()).counts
            assert (counts["enqueued"], counts["dispatched"], counts["interrupted"]) == (1, 0, 1)
            page = expect(DeadLetterPage, await probe.send(ListDeadLetters(partition=0)))
            (letter,) = page.letters
            assert (letter.reason, letter.attempts, letter.interruptions) == ("interrupted", 1, 1)
            assert letter.body == step.body
            status = await probe.inspect()
            assert (status.waiting, status.parked) == (1, stamp[2] == "p")
            offer = await probe.take()
            assert offer.parked == (stamp[2] == "p")
            if offer.dispatch is not None:
                assert [message.uid for message in offer.dispatch.messages] == [behind.uid]

    @pytest.mark.parametrize(
        ("stamp", "settlement"), [("tdc3", "requeue"), ("erc3", "requeue"), ("emc3", "recover")]
    )
    async def test_what_may_run_again_keeps_its_place(
        self, open_probe: OpenProbe, stamp: str, settlement: str
    ) -> None:
        async with open_probe() as probe:
            await probe.own()
            step, behind = probe.message(name=stamp), probe.message(name=stamp)
            await probe.accept(step)
            await probe.accept(behind)
            before = (await probe.audit()).commit
            assert expect(Settled, await probe.send(lost(step.uid))).settlement == settlement
            assert (await probe.audit()).commit > before
            dispatch = await probe.dispatch(run_limit=5)
            assert dispatch.recovering == (settlement == "recover")
            (message,) = dispatch.messages
            assert (message.uid, message.attempt, message.interruptions) == (step.uid, 2, 1)

    async def test_what_is_known_of_a_lost_message_stays(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name="erc0")
            dispatch = await probe.taken(step)
            for _ in range(2):
                cut = Interrupt(
                    partition=0, entity="account/a", claim="claim-1", turn=dispatch.turn, uids=(step.uid,)
                )
                assert await probe.send(cut) == Settled("requeue")
                dispatch = await probe.dispatch()
            cut = Interrupt(
                partition=0, entity="account/a", claim="claim-1", turn=dispatch.turn, uids=(step.uid,)
            )
            assert await probe.send(cut) == Settled("requeue")
            assert await probe.send(lost(step.uid)) == Settled("requeue")
            (message,) = (await probe.dispatch()).messages
            assert (message.attempt, message.interruptions) == (4, 3)

    async def test_in_the_middle_of_the_log(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            steps = [probe.message(name="edc3") for _ in range(3)]
            for step in steps:
                await probe.accept(step)
            await probe.send(lost(steps[1].uid))
            first = await probe.dispatch()
            assert first.messages[0].uid == steps[0].uid
            second = (await probe.finish(first, "complete")).offer.dispatch
            assert second is not None
            assert second.messages[0].uid == steps[2].uid
            assert (await probe.finish(second, "complete")).offer.dispatch is None

    async def test_the_last_interruption(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name="tdc3")
            await probe.accept(step)
            answer = await probe.send(lost(step.uid, attempt=3, interruptions=2))
            assert answer == Settled("interrupt", (step.body,))

    async def test_a_recovery_that_was_lost(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message(name="emc3")
            await probe.accept(step)
            answer = await probe.send(lost(step.uid, attempt=2, interruptions=1, recovering=1))
            assert answer == Settled("interrupt", (step.body,))

    async def test_a_letter_without_room_parks(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_dead_letter_limit=1) as probe:
            await probe.own()
            steps = [probe.message(name="edc3") for _ in range(2)]
            for step in steps:
                await probe.accept(step)
            assert await probe.send(lost(steps[0].uid)) == Settled("interrupt", (steps[0].body,))
            assert not (await probe.inspect()).parked
            assert await probe.send(lost(steps[1].uid)) == Settled("interrupt", (steps[1].body,))
            assert (await probe.inspect()).parked

    async def test_nothing_to_settle(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            assert await probe.send(lost(step.uid)) == Settled("gone")
            dispatch = await probe.taken(step)
            assert await probe.send(lost(step.uid)) == Settled("gone")
            assert await probe.state_of(step) == "dispatched"
            await probe.finish(dispatch, "complete")
            assert await probe.send(lost(step.uid)) == Settled("gone")
            assert await probe.state_of(step) == "completed"

    async def test_fenced_and_checked(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            step = probe.message()
            await probe.accept(step)
            assert await probe.send(lost(step.uid, "claim-9")) == Stale("claim")
            wrong = replace(lost(step.uid), policy="\nwrong\n")
            assert expect(Rejected, await probe.send(wrong)).code == "bad_step"
            assert await probe.state_of(step) == "enqueued"
