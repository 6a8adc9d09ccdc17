"""Who is alive, and who has to go when there is no room."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from attrs import define

from atomic_actors.base._oneshot import Backend, oneshot_factory
from atomic_actors.node.execution._catalog import STARVED_MAX, Catalog

pytestmark = pytest.mark.anyio


COUNTER: Any = SimpleNamespace(name="counter")
FIRST: Any = SimpleNamespace(number=0)


@define(eq=False)
class Alive:
    """Stands for an activation."""

    entity: str
    kind: Any = COUNTER
    partition: Any = FIRST
    status: str = "active"
    is_busy: bool = False
    used_at_s: float = 0.0
    is_running: bool = False

    def close(self) -> None:
        self.status = "closing"


def catalog(max_activations: int = 0, idle_timeout_s: float = 10.0) -> Catalog:
    kinds = {"counter": SimpleNamespace(settings=SimpleNamespace(idle_timeout_s=idle_timeout_s))}
    backend = Backend(oneshot_factory(), lambda: 0.0)
    return Catalog(cast("Any", kinds), max_activations, 2, backend)


def populated(names: str, **settings: Any) -> tuple[Catalog, dict[str, Alive]]:
    alive = {name: Alive(name, used_at_s=float(number)) for number, name in enumerate(names)}
    found = catalog(**settings)
    for each in alive.values():
        found.add(cast("Any", each))
    return found, alive


async def test_it_finds_and_counts() -> None:
    found, alive = populated("ab")
    assert found.find("a") is cast("Any", alive["a"])
    assert found.find("c") is None
    assert found.count() == found.count("counter") == 2
    assert found.count("other") == 0
    assert len(found.population(0)) == 2
    assert found.population(1) == []
    found.remove(cast("Any", alive["a"]), was_closing=False)
    assert found.find("a") is None
    assert found.count("counter") == 1


async def test_only_the_present_activation_of_an_entity_is_removed() -> None:
    found, _ = populated("a")
    found.remove(cast("Any", Alive("a")), was_closing=False)
    assert found.find("a") is not None


async def test_the_least_recently_used_goes_first() -> None:
    found, alive = populated("abc", max_activations=3)
    alive["a"].used_at_s = 9.0
    found.used(cast("Any", alive["a"]))
    assert found.has_room()
    assert [name for name, each in alive.items() if each.status == "closing"] == ["b"]
    # It is as good as gone: there is room for one more.
    assert found.has_room()
    assert alive["c"].status == "active"


async def test_who_is_busy_stays() -> None:
    found, alive = populated("ab", max_activations=2)
    for each in alive.values():
        each.is_busy = True
    assert not found.has_room()
    alive["b"].is_busy = False
    assert found.has_room()
    assert alive["b"].status == "closing"


async def test_who_is_idle_for_long_goes() -> None:
    found, alive = populated("abc", idle_timeout_s=10.0)
    alive["b"].is_busy = True
    found.close_idle(11.5)
    assert [each.status for each in alive.values()] == ["closing", "active", "active"]
    found.close_idle(12.0)
    assert [each.status for each in alive.values()] == ["closing", "active", "closing"]


async def test_without_a_limit_nobody_goes() -> None:
    found, alive = populated("a", idle_timeout_s=0.0)
    found.close_idle(1e9)
    assert found.has_room()
    assert alive["a"].status == "active"


async def test_the_starved_are_remembered_in_order_and_in_bounds() -> None:
    found = catalog()
    for number in range(STARVED_MAX + 1):
        found.starve(1, str(number))
    assert len(found.starved) == STARVED_MAX
    assert found.take_starved() == (1, "0")
    assert found.take_starved() == (1, "1")


async def test_senders_wait_for_room() -> None:
    found = catalog()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(found.wait_for_room, 60.0)
            await anyio.wait_all_tasks_blocked()
            found.wake_senders()
    await found.wait_for_room(0.0)


async def test_an_empty_partition_is_not_waited_for() -> None:
    found, alive = populated("a")
    await found.wait_emptied(1)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(found.wait_emptied, 0)
            await anyio.wait_all_tasks_blocked()
            found.emptied(0)  # it is not
            found.remove(cast("Any", alive["a"]), was_closing=False)
            found.emptied(0)
