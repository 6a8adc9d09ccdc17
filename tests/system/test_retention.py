"""What an answered ask leaves behind: the wheel of deadlines keeps its place, and nothing that hangs on it.

At full speed an ask's time limit is a hundred thousand asks long. Requests that stay reachable until their time
limit have filled the memory of other systems, and here the garbage collector had to walk over them.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, HandlerFailed, Refused, handler

pytestmark = pytest.mark.anyio

ASKS = 200
#: An idle activation may hold the last message that it had.
KEPT_MAX = 25


@frozen
class Add(Command[int]):
    amount: int


@frozen
class Fail(Command[None]):
    pass


@define
class No(Refused):
    pass


@define
class Sum:
    total: int = 0


class Kept(Actor[Sum], kind="kept"):
    @handler
    async def add(self, message: Add) -> int:
        self.state.total += message.amount
        if message.amount < 0:
            raise No
        return self.state.total

    @handler
    async def fail(self, message: Fail) -> None:
        raise ValueError("broken")


class Quick(Kept, kind="quick", durable=False):
    pass


def alive(*names: str) -> dict[str, int]:
    gc.collect()
    counts = Counter(type(each).__name__ for each in gc.get_objects())
    return {name: counts[name] for name in names}


async def ask_all(system: ActorSystem, actor: type[Kept], amount: int) -> list[weakref.ref[Add]]:
    seen: list[weakref.ref[Add]] = []
    for number in range(ASKS):
        message = Add(amount)
        seen.append(weakref.ref(message))
        if amount < 0:
            with pytest.raises(No):
                await system.ask(actor.ref(str(number % 10)), message, timeout_s=60)
        else:
            await system.ask(actor.ref(str(number % 10)), message, timeout_s=60)
    return seen


@pytest.mark.parametrize("amount", [1, -1], ids=["answered", "refused"])
async def test_a_volatile_message_is_free_when_it_is_answered(amount: int) -> None:
    async with ActorSystem(Config(actors=[Quick], url="memory:")) as system:
        seen = await ask_all(system, Quick, amount)
        gc.collect()
        # The last one may still be in a frame.
        assert sum(ref() is not None for ref in seen) <= 1


@pytest.mark.parametrize("amount", [1, -1], ids=["answered", "refused"])
async def test_a_durable_ask_leaves_no_call_behind(amount: int) -> None:
    async with ActorSystem(Config(actors=[Kept], url="memory:")) as system:
        before = alive("CheckedCall", "_AsyncioOneShot", "TrioOneShot")
        seen = await ask_all(system, Kept, amount)
        after = alive(*before)
        assert sum(ref() is not None for ref in seen) <= 1
        assert sum(after.values()) - sum(before.values()) <= KEPT_MAX


async def test_a_failed_ask_leaves_nothing_either() -> None:
    async with ActorSystem(Config(actors=[Kept, Quick], url="memory:")) as system:
        before = alive("CheckedCall", "Fail")
        for number in range(ASKS):
            for actor in (Kept, Quick):
                with pytest.raises(HandlerFailed):
                    await system.ask(actor.ref(str(number % 10)), Fail(), timeout_s=60)
        after = alive(*before)
        assert sum(after.values()) - sum(before.values()) <= KEPT_MAX


async def test_a_tell_leaves_no_call_behind() -> None:
    async with ActorSystem(Config(actors=[Kept], url="memory:")) as system:
        before = alive("CheckedCall")
        for number in range(ASKS):
            await system.tell(Kept.ref(str(number % 10)), Add(1))
        assert alive("CheckedCall")["CheckedCall"] - before["CheckedCall"] <= KEPT_MAX
