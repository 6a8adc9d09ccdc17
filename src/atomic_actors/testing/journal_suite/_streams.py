"""Conformance: messages between entities and partitions, batches of steps, and steps that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from atomic_actors.journal._protocol import (
    Append,
    Appended,
    Audited,
    ClaimPartition,
    Finished,
    Journal,
    Outgoing,
    Rejected,
    RelayAck,
    RelayAcked,
    Relayed,
    RelayEntry,
    RelayIn,
    RelayPage,
    RelayRead,
    Stale,
    Step,
    Sweep,
    Swept,
    Take,
    Taken,
    Withdraw,
)
from atomic_actors.testing.journal_suite._probe import POLICY, OpenProbe, Probe, check_counters, expect


def outgoing(probe: Probe, partition: int, entity: str) -> Outgoing:
    """A message for an outbox."""
    return Outgoing(partition=partition, entity=entity, uid=probe.new_uid(), body=probe.body())


async def send_out(probe: Probe, *outbox: Outgoing, **fields: Any) -> Finished:
    """Commit a turn of `account/a` that sends these."""
    dispatch = await probe.taken(probe.message())
    return await probe.finish(dispatch, "complete", outbox=outbox, **fields)


async def read_stream(probe: Probe, target: int = 1, **fields: Any) -> RelayPage:
    """The oldest messages of partition 0's stream to `target`."""
    return expect(RelayPage, await probe.send(RelayRead(0, "claim-1", target, **fields)))


def stream_of(probe: Probe, *numbers: int, entity: str = "account/t") -> tuple[RelayEntry, ...]:
    """Numbered messages."""
    return tuple(RelayEntry(number, entity, probe.new_uid(), probe.body()) for number in numbers)


async def order_of(probe: Probe, entity: str, partition: int = 1, claim: str = "claim-t") -> list[str]:
    """Run all that waits; returns the unique ids in the order in which they were taken."""
    order: list[str] = []
    offer = await probe.take(entity, claim, partition=partition)
    while offer.dispatch is not None:
        order += [message.uid for message in offer.dispatch.messages]
        step = probe.finish_step(offer.dispatch, "complete", entity=entity, partition=partition, claim=claim)
        offer = expect(Finished, await probe.send(step)).offer
    return order


class Streams:
    """The outbox, the relay and batches."""

    # The outbox.

    async def test_outbox_of_the_same_partition(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_depth_limit=1) as probe:
            await probe.own()
            sent = [outgoing(probe, 0, "account/b") for _ in range(3)]
            to_itself = outgoing(probe, 0, "account/a")
            finished = await send_out(probe, *sent, to_itself, state=b"s", run_limit=0)
            # No depth limit binds a turn, and its commit carries everything.
            assert (finished.version, finished.offer.more) == (1, True)
            assert set(expect(Swept, await probe.send(Sweep(partition=0, claim="claim-1"))).due) == {
                "account/a",
                "account/b",
            }
            assert await order_of(probe, "account/b", 0, "claim-1") == [message.uid for message in sent]
            assert await order_of(probe, "account/a", 0, "claim-1") == [to_itself.uid]
            assert (await probe.audit()).counts["accepted"] == 5

    async def test_a_message_to_itself_comes_behind_what_waits(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            waiting = probe.message()
            await probe.accept(waiting)
            to_itself = outgoing(probe, 0, "account/a")
            finished = await probe.finish(dispatch, "retry", outbox=(to_itself,))
            assert finished.offer.dispatch is not None
            assert finished.offer.dispatch.messages[0].uid == dispatch.messages[0].uid
            await probe.finish(finished.offer.dispatch, "complete", run_limit=0)
            assert await order_of(probe, "account/a", 0, "claim-1") == [waiting.uid, to_itself.uid]

    async def test_outbox_of_other_partitions(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            claimed = await probe.own()
            sent = [outgoing(probe, target, "account/t") for target in (1, 2, 1, 1)]
            await send_out(probe, *sent)
            swept = expect(Swept, await probe.send(Sweep(partition=0, claim="claim-1")))
            assert swept.outbound == (1, 2)
            page = await read_stream(probe, 1)
            assert page.incarnation == claimed.incarnation
            assert [(entry.number, entry.uid) for entry in page.entries] == [
                (1, sent[0].uid), (2, sent[2].uid), (3, sent[3].uid)
            ]  # fmt: skip
            assert page.entries[0] == RelayEntry(1, "account/t", sent[0].uid, sent[0].body)
            assert [entry.number for entry in (await read_stream(probe, 1, limit=2)).entries] == [1, 2]
            assert [entry.number for entry in (await read_stream(probe, 2)).entries] == [1]
            assert (await read_stream(probe, 3)).entries == ()
            audited = await probe.audit()
            assert (audited.outbound, audited.counts["accepted"]) == (4, 1)

    async def test_outbox_of_other_services(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            claimed = await probe.own()
            # The other service may have more partitions, and its name anything but braces.
            sent = [
                Outgoing(
                    partition=partition,
                    entity="bill/t",
                    uid=probe.new_uid(),
                    body=probe.body(),
                    service=service,
                )
                for service, partition in (("b/1: x", 0), ("b/1: x", 900), ("z", 1), ("b/1: x", 0))
            ]
            own = outgoing(probe, 1, "account/t")
            await send_out(probe, *sent, own)
            swept = expect(Swept, await probe.send(Sweep(partition=0, claim="claim-1")))
            assert swept.outbound == (1, "b/1: x/0", "b/1: x/900", "z/1")
            page = expect(RelayPage, await probe.send(RelayRead(0, "claim-1", "b/1: x/0")))
            assert page.incarnation == claimed.incarnation
            assert [(entry.number, entry.uid) for entry in page.entries] == [
                (1, sent[0].uid), (2, sent[3].uid)
            ]  # fmt: skip
            assert [entry.uid for entry in (await read_stream(probe, 1)).entries] == [own.uid]
            assert (await probe.audit()).outbound == 5
            # In a new incarnation, what waits keeps its numbers.
            await probe.send(
                ClaimPartition(
                    partition=0,
                    claim="claim-2",
                    node=b"node",
                    expected_claim="claim-1",
                    expected_renewals=0,
                    new_incarnation=True,
                )
            )
            assert expect(RelayPage, await probe.send(RelayRead(0, "claim-2", "b/1: x/0"))) == page
            assert await probe.send(
                RelayAck(
                    partition=0, claim="claim-2", target="b/1: x/0", last=2, incarnation=page.incarnation
                )
            ) == RelayAcked(0)
            assert (await probe.audit()).outbound == 3

    async def test_an_outbox_of_many_thousands(self, open_probe: OpenProbe) -> None:
        """Lua's `unpack` ends at eight thousand values, in the middle of a commit."""
        async with open_probe() as probe:
            await probe.own()
            await send_out(probe, *(outgoing(probe, 1, "account/t") for _ in range(8_500)))
            audited = await probe.audit()
            assert (audited.outbound, audited.counts["completed"]) == (8_500, 1)
            assert [entry.number for entry in (await read_stream(probe)).entries[:3]] == [1, 2, 3]

    async def test_outbox_of_another_service_from_its_own_number(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            # Partition 0 of the other service is another one than partition 0 of this.
            await send_out(
                probe,
                Outgoing(
                    partition=0, entity="bill/t", uid=probe.new_uid(), body=probe.body(), service="other"
                ),
            )
            assert (await probe.audit()).counts["accepted"] == 1
            assert expect(Swept, await probe.send(Sweep(partition=0, claim="claim-1"))).outbound == (
                "other/0",
            )

    async def test_relay_in_from_another_service(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own("claim-t", 1)
            entries = stream_of(probe, 1, 2)
            assert await probe.once(
                RelayIn(partition=1, source="other/0", incarnation=7, entries=entries)
            ) == Relayed(2, ("account/t",))
            assert await probe.once(
                RelayIn(partition=1, source="other/0", incarnation=7, entries=entries)
            ) == Relayed(2, ())
            # The same numbers of another stream are other messages.
            assert await probe.once(
                RelayIn(partition=1, source=0, incarnation=7, entries=stream_of(probe, 1))
            ) == Relayed(1, ("account/t",))
            assert len(await order_of(probe, "account/t")) == 3

    async def test_acknowledged_numbers_are_not_used_again(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            await send_out(probe, *(outgoing(probe, 1, "account/t") for _ in range(3)))
            assert await probe.send(RelayAck(partition=0, claim="claim-1", target=1, last=2)) == RelayAcked(1)
            assert await probe.send(RelayAck(partition=0, claim="claim-1", target=1, last=1)) == RelayAcked(1)
            assert [entry.number for entry in (await read_stream(probe)).entries] == [3]
            assert await probe.send(RelayAck(partition=0, claim="claim-1", target=1, last=3)) == RelayAcked(0)
            assert expect(Swept, await probe.send(Sweep(partition=0, claim="claim-1"))).outbound == ()
            await probe.take_over("claim-2")
            assert await probe.send(RelayRead(0, "claim-1", 1)) == Stale("claim")
            dispatch = await probe.taken(probe.message("account/c"), "claim-2")
            step = probe.finish_step(
                dispatch, "complete", entity="account/c", claim="claim-2",
                outbox=(outgoing(probe, 1, "account/t"),),
            )  # fmt: skip
            expect(Finished, await probe.send(step))
            page = expect(RelayPage, await probe.send(RelayRead(0, "claim-2", 1)))
            assert [entry.number for entry in page.entries] == [4]

    async def test_a_rejected_commit_sends_nothing(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            fields: list[dict[str, Any]] = [
                {"outbox": (outgoing(probe, 1, "account/t"), outgoing(probe, 99, "account/t"))},
                {"outbox": (outgoing(probe, 0, "account/b"), outgoing(probe, -1, "account/t"))},
                {"outbox": (outgoing(probe, 0, "account/b"),), "state": b"x", "expected_version": 3},
                {"outbox": (outgoing(probe, 0, "account/b"),), "verdicts": ()},
            ]
            for wrong in fields:
                expect(Rejected, await probe.send(probe.finish_step(dispatch, "complete", **wrong)))
            audited = await probe.audit()
            assert (audited.counts["accepted"], audited.outbound) == (1, 0)
            assert (await probe.inspect("account/b")).waiting == 0

    async def test_an_outbox_has_each_message_once(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            dispatch = await probe.taken(probe.message())
            waiting = probe.message("account/b")
            await probe.accept(waiting)
            here, there = outgoing(probe, 0, "account/b"), outgoing(probe, 1, "account/t")
            known = Outgoing(partition=0, entity="account/b", uid=waiting.uid, body=probe.body())
            for outbox in ((here, here), (there, there), (known,)):
                refused = await probe.send(probe.finish_step(dispatch, "complete", outbox=outbox))
                assert expect(Rejected, refused).code == "bad_step"
            audited = await probe.audit()
            assert (audited.counts["accepted"], audited.outbound) == (2, 0)
            await probe.finish(dispatch, "complete", outbox=(here, there))

    async def test_an_answer_to_what_was_not_sent(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            await send_out(probe, *(outgoing(probe, 1, "account/t") for _ in range(2)))
            # Not late as well: behind the next message it would be the answer to that.
            assert await probe.once(RelayAck(partition=0, claim="claim-1", target=1, last=99)) == RelayAcked(
                0
            )
            await send_out(probe, outgoing(probe, 1, "account/t"))
            assert [entry.number for entry in (await read_stream(probe)).entries] == [3]
            assert (await probe.audit()).outbound == 1

    # The relay's other end.

    async def test_relay_in(self, open_probe: OpenProbe) -> None:
        async with open_probe(partition_depth_limit=1) as probe:
            await probe.own("claim-t", 1)
            first, others = stream_of(probe, 1, 2), stream_of(probe, 3, entity="account/u")
            step = RelayIn(partition=1, source=0, incarnation=77, entries=(*first, *others))
            relayed = expect(Relayed, await probe.once(step))
            assert (relayed.last, set(relayed.entities)) == (3, {"account/t", "account/u"})
            assert await probe.once(step) == Relayed(3, ())
            assert await order_of(probe, "account/t") == [entry.uid for entry in first]
            assert await order_of(probe, "account/u") == [entry.uid for entry in others]
            assert (await probe.audit(1)).counts["accepted"] == 3

    async def test_relay_in_overlaps_and_gaps(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own("claim-t", 1)
            entries = stream_of(probe, *range(1, 9))
            for gap in ((entries[1],), (entries[0], entries[2]), (entries[2], entries[3])):
                refused = await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=gap))
                assert expect(Rejected, refused).code == "stream_gap"
            assert (await probe.audit(1)).counts["accepted"] == 0
            assert await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=())) == Relayed(
                0, ()
            )
            for last, part in [(3, entries[:3]), (3, entries[:2]), (5, entries[1:5]), (5, entries[4:5])]:
                assert (
                    expect(
                        Relayed,
                        await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=part)),
                    ).last
                    == last
                )
            refused = await probe.send(
                RelayIn(partition=1, source=0, incarnation=77, entries=(entries[4], entries[6]))
            )
            assert expect(Rejected, refused).code == "stream_gap"
            assert (
                expect(
                    Relayed,
                    await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=entries[5:])),
                ).last
                == 8
            )
            assert await order_of(probe, "account/t") == [entry.uid for entry in entries]

    async def test_a_message_of_a_stream_that_waits_already(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own("claim-t", 1)
            (entry,) = entries = stream_of(probe, 1)
            await probe.send(RelayIn(partition=1, source=0, incarnation=77, entries=entries))
            # Its source has lost the number that it had, and sends it under another one.
            again = await probe.send(RelayIn(partition=1, source=0, incarnation=78, entries=entries))
            assert expect(Relayed, again).last == 1
            assert (await probe.audit(1)).counts["accepted"] == 1
            assert await order_of(probe, "account/t") == [entry.uid]

    async def test_streams_are_apart(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own("claim-t", 1)
            for source, incarnation in [(0, 77), (0, 78), (2, 77)]:
                relayed = await probe.send(
                    RelayIn(
                        partition=1, source=source, incarnation=incarnation, entries=stream_of(probe, 1, 2)
                    )
                )
                assert expect(Relayed, relayed).last == 2
            assert (await probe.audit(1)).counts["accepted"] == 6

    async def test_order_from_one_entity_to_another(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            await probe.own("claim-t", 1)
            sent: list[str] = []
            for _ in range(4):
                outbox = tuple(outgoing(probe, 1, "account/t") for _ in range(2))
                sent += [message.uid for message in outbox]
                await send_out(probe, *outbox)
            while (page := await read_stream(probe, limit=3)).entries:
                relayed = expect(
                    Relayed,
                    await probe.send(
                        RelayIn(partition=1, source=0, incarnation=page.incarnation, entries=page.entries)
                    ),
                )
                await probe.send(RelayAck(partition=0, claim="claim-1", target=1, last=relayed.last))
            assert await order_of(probe, "account/t") == sent
            assert (await probe.audit()).outbound == 0

    # Batches.

    @pytest.mark.parametrize("position", range(4))
    async def test_a_bad_step_fails_alone(self, open_probe: OpenProbe, position: int) -> None:
        async with open_probe(partition_depth_limit=100) as probe:
            await probe.own()
            uid = probe.new_uid()
            bad: list[Step] = [
                Append(partition=0, entity="account/x", uid=uid, body=b"not a stored message"),
                Append(partition=0, entity="account/x", uid="no birth", body=probe.body()),
                replace(probe.message("account/x"), partition=99),
                Take(partition=0, entity="account/0", claim="claim-9", policy=POLICY),
                Sweep(partition=0, claim="claim-1", limit=0),
                RelayIn(partition=0, source=1, incarnation=7, entries=stream_of(probe, 5)),
            ]
            for number, wrong in enumerate(bad):
                steps: list[Step] = [
                    probe.message(f"account/{number}-{n}", claim="claim-1") for n in range(3)
                ]
                steps.insert(position, wrong)
                results = await probe.batch(*steps, Sweep(partition=0, claim="claim-1"))
                assert isinstance(results.pop(position), Rejected | Stale), wrong
                assert expect(Swept, results.pop()).due == ()
                for result in results:
                    assert expect(Appended, result).offer.dispatch is not None
            assert (await probe.audit()).counts["accepted"] == 3 * len(bad)
            assert (await probe.inspect("account/x")).waiting == 0

    async def test_steps_of_a_call_happen_in_order(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            first, second = probe.message(), probe.message()
            steps: list[Step] = [
                first,
                Withdraw(0, "account/a", first.uid),
                second,
                first,
                Take(partition=0, entity="account/a", claim="claim-1", policy=POLICY),
                Take(partition=0, entity="account/a", claim="claim-1", policy=POLICY),
            ]
            answers = await probe.batch(*steps)
            assert expect(Appended, answers[3]).outcome == b"withdrawn\n"
            dispatch = expect(Taken, answers[4]).offer.dispatch
            assert dispatch is not None
            assert dispatch.messages[0].uid == second.uid
            assert answers[5] == answers[4]

    async def test_a_large_batch(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            for partition in range(4):
                await probe.own("claim-1", partition)
            steps = [probe.message(f"account/{n}", partition=n % 4, claim="claim-1") for n in range(200)]
            results = await probe.batch(*steps)
            finishes: list[Step] = []
            for step, result in zip(steps, results, strict=True):
                appended = expect(Appended, result)
                assert appended.uid == step.uid
                assert appended.offer.dispatch is not None
                finishes.append(
                    probe.finish_step(
                        appended.offer.dispatch, "complete", entity=step.entity, partition=step.partition
                    )
                )
            for result in await probe.batch(*finishes):
                expect(Finished, result)
            for partition in range(4):
                assert (await probe.audit(partition)).counts["completed"] == 50

    async def test_an_empty_call(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            journal: Journal = probe.journal
            assert list((await journal.execute([])).results) == []

    async def test_commit_number_grows(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            numbers = [(await probe.audit()).commit]
            for _ in range(3):
                dispatch = await probe.taken(probe.message())
                await probe.finish(dispatch, "complete")
                numbers.append((await probe.audit()).commit)
            assert numbers == sorted(set(numbers))
            assert (await probe.audit()).commit == numbers[-1]
            assert (await probe.take_over("claim-2")).commit >= numbers[-1]

    async def test_large_and_binary_values(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            await probe.own()
            state = bytes(range(256)) * 400
            dispatch = await probe.taken(probe.message())
            await probe.finish(dispatch, "complete", state=state)
            dispatch = await probe.taken(probe.message())
            assert dispatch.state == state

    async def test_namespaces_and_services_are_apart(self, open_probe: OpenProbe) -> None:
        async with open_probe(service="one") as first, open_probe(service="two") as second:
            await first.own()
            await first.taken(first.message())
            audited: Audited = await second.audit()
            check_counters(audited)
            assert audited.counts["accepted"] == 0
            assert (await second.own()).epoch == 1
