"""Conformance: who owns a partition, for those who only look; and the directory of nodes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from atomic_actors.journal._directory import Directory, NodeEntry, WithDirectory
from atomic_actors.journal._protocol import LeaseState, ReadLease, Release, Renew
from atomic_actors.testing.journal_suite._probe import OpenProbe, Probe


def directory_of(probe: Probe) -> Directory:
    """The journal's directory; a journal need not have one."""
    if not isinstance(probe.journal, WithDirectory):
        pytest.skip("this journal has no directory: its nodes do not know of each other")
    return probe.journal.directory


def by_id(entries: Sequence[NodeEntry]) -> dict[str, NodeEntry]:
    """Entries in no particular order."""
    return {entry.node_id: entry for entry in entries}


class Nodes:
    """What nodes see of each other."""

    async def test_a_lease_can_be_read(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            assert await probe.send(ReadLease(0)) == LeaseState(b"", 0, "", 0)
            await probe.own()
            assert await probe.send(ReadLease(0)) == LeaseState(b"node", 1, "claim-1", 0)
            await probe.once(Renew(0, "claim-1"))
            assert await probe.send(ReadLease(0)) == LeaseState(b"node", 1, "claim-1", 1)
            assert await probe.send(ReadLease(1)) == LeaseState(b"", 0, "", 0)
            await probe.send(Release(0, "claim-1"))
            assert await probe.send(ReadLease(0)) == LeaseState(b"", 1, "", 0)

    async def test_nodes_announce_themselves(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            directory = directory_of(probe)
            assert by_id(await directory.read()) == {}
            assert by_id(await directory.announce("a", b"one")) == {"a": NodeEntry("a", 1, b"one", False)}
            await directory.announce("b", b"\x00\xff")
            seen = by_id(await directory.announce("a", b"two"))
            assert seen == {"a": NodeEntry("a", 2, b"two", False), "b": NodeEntry("b", 1, b"\x00\xff", False)}
            assert by_id(await directory.read()) == seen

    async def test_a_node_is_forgotten_unless_it_came_back(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            directory = directory_of(probe)
            await directory.announce("a", b"one")
            await directory.announce("a", b"one")
            assert not await directory.forget("a", 1)
            assert by_id(await directory.read())["a"].beats == 2
            assert await directory.forget("a", 2)
            assert not await directory.forget("a", 2)
            assert by_id(await directory.read()) == {}
            await directory.announce("a", b"one")
            assert await directory.forget("a")
            assert not await directory.forget("a")

    async def test_nodes_are_asked_to_drain(self, open_probe: OpenProbe) -> None:
        async with open_probe() as probe:
            directory = directory_of(probe)
            await directory.announce("a", b"one")
            await directory.announce("b", b"one")
            assert list(await directory.drain(["a", "gone"])) == ["a"]
            seen = by_id(await directory.announce("a", b"one"))
            assert (seen["a"].is_draining, seen["b"].is_draining) == (True, False)
            # One that comes back under its old name begins anew.
            await directory.forget("a")
            assert not by_id(await directory.announce("a", b"one"))["a"].is_draining
