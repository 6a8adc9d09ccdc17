"""Clients that send to the accounts, and can go on after a crash of the process they ran in.

What a client sends is a function of (seed, client, place): a place that may or may not have been accepted
is sent again with the same key. Which places are done stands in a file for each client.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from attrs import define, field, frozen

from atomic_actors import (
    AcceptanceUnknown,
    ActorSystem,
    AskTimeout,
    Config,
    EntityRef,
    Interrupted,
    StoreUnavailable,
)
from tests.chaos.bank import Account, Decline, Declined, Move, Rates, SlowMove, Witness

__all__ = ("Clients", "Plan", "make_config")


@frozen
class Plan:
    """One workload. Its files are in `directory`."""

    url: str
    namespace: str
    directory: Path
    seed: int
    backend: str = "asyncio"
    accounts: int = 10
    clients: int = 6
    #: How many places each client has; 0 for no end.
    places: int = 0
    partitions: int = 16
    pace_s: float = 0.005
    settings: dict[str, Any] = field(factory=dict)

    @property
    def names(self) -> list[str]:
        return [f"a{number}" for number in range(self.accounts)]

    @property
    def witness_path(self) -> Path:
        return self.directory / "witness"


def make_config(plan: Plan, witness: Witness, **settings: Any) -> Config:
    return Config(
        # So many kills cut one message off more often than a poison message is allowed to be.
        max_interruptions=0,
        url=plan.url,
        namespace=plan.namespace,
        actors=[Account.using(witness=witness), Rates.using(witness=witness)],
        partitions=plan.partitions,
        **{**plan.settings, **settings},
    )


@define(eq=False)
class Clients:
    """The clients of one process.

    `told` counts what their asks were told. Where `outages` is true, a store that is away is no error.
    """

    plan: Plan
    system: ActorSystem
    outages: bool = False
    #: Every client ends after this place, where it is not 0.
    stop: bool = False
    told: Counter[str] = field(factory=Counter)
    #: Called when an ask is told that its message was interrupted.
    on_interrupted: Callable[[], None] | None = None
    #: Those of the plan's clients that run here; all where None. Each may run in one process only.
    only: Sequence[int] | None = None

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            for client in range(self.plan.clients) if self.only is None else self.only:
                group.start_soon(self._run_one, client)

    async def _run_one(self, client: int) -> None:
        path = self.plan.directory / f"client-{client}"
        place = done(self.plan, client)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            while not self.stop and (not self.plan.places or place < self.plan.places):
                await self._send(client, place)
                place += 1
                os.write(descriptor, f"{place}\n".encode())
        finally:
            os.close(descriptor)

    async def _send(self, client: int, place: int) -> None:
        plan = self.plan
        choices = random.Random(f"{plan.seed}/{client}/{place}")
        name, number = target_of(plan, client, place)
        ref = Account.ref(name)
        to = choices.choice([other for other in plan.names if other != name])
        make = choices.choice((Move, SlowMove))
        message = make(f"client-{client}", number, to, choices.randint(1, 9), choices.random() < 0.5)
        key = f"{client}/{place}"
        waits, declines = choices.random() < 0.5, choices.random() < 0.1
        if declines:
            await self._insist(partial(self._be_declined, ref, f"d{key}"))
        if waits:
            await self._insist(partial(self._ask, ref, message, key))
        else:
            await self._insist(partial(self.system.tell, ref, message, key=key))

    async def _insist(self, send: Callable[[], Any]) -> None:
        """Send until it is known to be accepted: the key makes that safe."""
        while True:
            try:
                await send()
            except (StoreUnavailable, AcceptanceUnknown, AskTimeout) as error:
                self.told[type(error).__name__] += 1
                if not self.outages:
                    raise
                await anyio.sleep(0.05)
            else:
                return

    async def _ask(self, ref: EntityRef, message: Move | SlowMove, key: str) -> None:
        try:
            reply = await self.system.ask(ref, message, key=key, timeout_s=30)
        except Interrupted:
            self.told["interrupted"] += 1
            if self.on_interrupted is not None:
                self.on_interrupted()
            return
        assert reply == message.number
        self.told["replied"] += 1

    async def _be_declined(self, ref: EntityRef, key: str) -> None:
        try:
            await self.system.ask(ref, Decline(key), key=key, timeout_s=30)
        except Declined as refusal:
            text = refusal.text
        else:
            raise AssertionError(f"{key} was not declined")
        assert text == key
        self.told["declined"] += 1


def target_of(plan: Plan, client: int, place: int) -> tuple[str, int]:
    """The account that gets a client's message of this place, and the message's number in its stream."""
    names = plan.names
    return names[(client * 3 + place) % len(names)], place // len(names) + 1


def done(plan: Plan, client: int) -> int:
    """How many places of a client are known to be done. A line that a crash cut off does not count."""
    path = plan.directory / f"client-{client}"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(lines[-1]) if lines else 0
