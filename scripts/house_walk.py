"""Trace one ask to a warm entity: how many functions of the package it calls, and how often it changes rooms.

Only Python functions of the package count; each time that a coroutine is resumed is a call. A *stay* begins
each time that the module, or the room, is another one than that of the call before. A room is a folder; a
module that lies in the package's root is a room of its own. For the outer rooms, `node` is one, and so is
`journal`.

Other work of the node may fall into an ask (its ticker, a renewal of the lease), so several are traced, and the
one with the fewest calls is taken.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final

import anyio
from attrs import define, frozen

import atomic_actors
from atomic_actors import Actor, ActorSystem, Command, Config, handler

STAYS_IN_ROOMS_MAX: Final = 40
MODULES_MAX: Final = 15
URLS: Final = ("memory:", "embedded:")
WARM_UPS: Final = 30
TRACED_ASKS: Final = 25

ROOT: Final = f"{Path(atomic_actors.__file__).parent}/"


@frozen
class Add(Command[int]):
    """Add to the sum."""

    amount: int


@define
class Sum:
    """What an entity holds."""

    total: int = 0


class Adder(Actor[Sum], kind="adder"):
    """An entity that adds."""

    @handler(transactional=True)
    async def add(self, message: Add) -> int:
        self.state.total += message.amount
        return self.state.total


def stays(places: Sequence[str]) -> Counter[str]:
    """How often each place is entered: once more each time that the place before was another."""
    return Counter(place for index, place in enumerate(places) if index == 0 or places[index - 1] != place)


def room_of(module: str) -> str:
    """The folder of a module, which is given as a path inside the package."""
    return module.rpartition("/")[0] or module


def outer_room_of(module: str) -> str:
    """The outermost folder of a module."""
    return module.partition("/")[0]


@dataclass
class Walk:
    """The modules of the calls of one ask, in order."""

    name: str
    modules: list[str]

    @property
    def module_stays(self) -> Counter[str]:
        return stays(self.modules)

    @property
    def room_stays(self) -> Counter[str]:
        return stays([room_of(module) for module in self.modules])

    def report(self) -> str:
        modules, rooms = self.module_stays, self.room_stays
        outer = stays([outer_room_of(module) for module in self.modules])
        return (
            f"ask, {self.name}: {len(self.modules)} calls; {modules.total()} stays in {len(modules)} modules; "
            f"{rooms.total()} stays in {len(rooms)} rooms; {outer.total()} in {len(outer)} outer rooms"
            f"\n  modules: {', '.join(f'{name} {count}' for name, count in modules.most_common(12))}"
            f"\n  rooms: {', '.join(f'{name} {count}' for name, count in rooms.most_common())}"
            f"\n  outer rooms: {', '.join(f'{name} {count}' for name, count in outer.most_common())}"
        )

    def missed(self) -> list[str]:
        """The targets that are not reached."""
        rooms, modules = self.room_stays.total(), len(self.module_stays)
        found = []
        if rooms > STAYS_IN_ROOMS_MAX:
            found.append(f"ask, {self.name}: {rooms} stays in rooms, at most {STAYS_IN_ROOMS_MAX}")
        if modules > MODULES_MAX:
            found.append(f"ask, {self.name}: {modules} modules, at most {MODULES_MAX}")
        return found


class Tracer:
    """Notes the module of each call into the package while it is on; a context manager."""

    def __init__(self) -> None:
        self.modules: list[str] = []

    def __enter__(self) -> Tracer:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (file := frame.f_code.co_filename).startswith(ROOT):
            self.modules.append(file.removeprefix(ROOT))


async def walk(url: str) -> Walk:
    """The shortest of several asks, traced one by one on a system of its own."""
    with TemporaryDirectory() as directory:
        # A store of its own: the one in the working directory may hold the Lua library of another branch.
        where = f"embedded://{directory}" if url == "embedded:" else url
        traced = await _trace_asks(Config(actors=[Adder], url=where))
    return Walk(url, min(traced, key=len))


async def _trace_asks(config: Config) -> list[list[str]]:
    traced: list[list[str]] = []
    async with ActorSystem(config) as system:
        entity = Adder.ref("one")
        for _ in range(WARM_UPS):
            await system.ask(entity, Add(1))
        for _ in range(TRACED_ASKS):
            # What the ask before left to do is done, and not counted with the next.
            await anyio.sleep(0.01)
            with Tracer() as tracer:
                await system.ask(entity, Add(1))
            traced.append(tracer.modules)
    return traced


def walks() -> list[Walk]:
    return [anyio.run(walk, url) for url in URLS]
