"""Hash slots, redirects, and the map of who has which slot."""

from __future__ import annotations

import anyio
import pytest
from attrs import define

from atomic_actors.journal.redis.cluster._slots import SlotMap, parse_redirect, read_slots, slot_of


@pytest.mark.parametrize(
    ("key", "slot"),
    # As `CLUSTER KEYSLOT` says.
    [
        (b"foo", 12182),
        (b"{foo}bar", 12182),
        (b"x{foo}{bar}", 12182),
        (b"foo{}bar", 14292),
        (b"{}", 15257),
        (b"123456789", 12739),
    ],
)
def test_slot_of(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


def test_redirects() -> None:
    assert parse_redirect("3999 10.0.0.1:6381", ("h", 1)) == ("10.0.0.1", 6381)
    assert parse_redirect("3999 ::1:6381", ("h", 1)) == ("::1", 6381)
    assert parse_redirect("3999 :6381", ("h", 1)) == ("h", 6381)


def test_answers() -> None:
    answer = [
        [0, 5, [b"10.0.0.1", 7000, b"id"], [b"10.0.0.2", 7001, b"id", []]],
        [7, 16383, [None, 7002, b"id"]],
    ]
    ranges, nodes = read_slots(answer, ("asked", 7002))
    assert ranges == [(0, 5, ("10.0.0.1", 7000)), (7, 16383, ("asked", 7002))]
    assert nodes == {("10.0.0.1", 7000), ("10.0.0.2", 7001), ("asked", 7002)}


@define(eq=False)
class Watcher:
    changes: int = 0

    def slots_changed(self) -> None:
        self.changes += 1


def test_the_map() -> None:
    one, two = ("one", 1), ("two", 2)
    slots, watcher = SlotMap([one]), Watcher()
    slots.add_watcher(watcher)
    assert slots.owner(3) is None
    slots.replace([(0, 5, one), (7, 16383, two)], {one, two})
    assert (slots.owner(5), slots.owner(6), slots.owner(7)) == (one, None, two)
    assert slots.primaries() == [one, two]
    slots.replace([(0, 5, one), (7, 16383, two)], {one, two})
    assert watcher.changes == 1
    slots.move(5, two)
    slots.move(5, two)
    assert slots.owner(5) == two
    slots.remove_watcher(watcher)
    slots.move(6, one)
    assert watcher.changes == 2


@pytest.mark.anyio
async def test_suspicion_wakes_once() -> None:
    slots = SlotMap([("one", 1)])
    slots.suspect()
    await slots.wait_suspected()
    async with anyio.create_task_group() as task_group:
        woken = anyio.Event()

        async def wait() -> None:
            await slots.wait_suspected()
            woken.set()

        task_group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not woken.is_set()
        slots.suspect()
        with anyio.fail_after(1):
            await woken.wait()
