"""What the lease keeper publishes of a renewal whose outcome is known for some leases only."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import pytest
from attrs import evolve

from atomic_actors.node.ownership import _identity
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._instants import NEVER, instant_now
from atomic_actors.node.ownership._lease_keeper import LeaseKeeper


class HalfAnswered:
    """Renews the first lease, loses the second, and says nothing of the third."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.calls = 0

    def open(self) -> None:
        pass

    def renew(self, partitions: Sequence[int], claims: Sequence[str]) -> Sequence[bool | None]:
        self.calls += 1
        if self.calls == 2:  # what the first call said is published by now
            self.called.set()
        return [True, False, None]

    def close(self) -> None:
        pass


def test_what_is_not_known_keeps_its_instant() -> None:
    client = HalfAnswered()
    keeper = LeaseKeeper(partitions=3, interval_s=0.01, client=client, loop_stall_limit_s=60.0)
    before = instant_now()
    keeper.claims[:] = ["a", "b", "c"]
    keeper.renewed[:] = [before] * 3
    keeper.start()
    try:
        assert client.called.wait(10)
    finally:
        keeper.stop(5)
    assert keeper.renewed[0] > before
    assert keeper.renewed[1] == NEVER
    assert keeper.renewed[2] == before


def test_a_process_that_may_not_be_looked_at_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /proc is mounted with hidepid, or a service has ProtectProc=invisible."""
    ours = NodeIdentity(node_id="a", boot_id="boot", pid_namespace="pid:[1]", pid=os.getpid(), start_time="1")
    other = evolve(ours, node_id="b", pid=4321)

    def hidden(pid: int) -> str:
        return ""

    def of_another_user(pid: int, number: int) -> None:
        raise PermissionError

    def gone(pid: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(_identity, "_process_start_time", hidden)
    monkeypatch.setattr(os, "kill", of_another_user)
    assert not ours.knows_dead(other)
    monkeypatch.setattr(os, "kill", gone)
    assert ours.knows_dead(other)
