"""How callers from outside reach a simulated cluster: each call goes to a node that lives, and dies with it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

from attrs import define

from atomic_actors._system import ActorSystem, EntityHandle
from atomic_actors.base._errors import AtomicActorsError, Refused
from atomic_actors.codec._codec import Codec
from atomic_actors.testing.checkers._linearizability import RefusedWith, SequentialModel
from atomic_actors.testing.simulation._node import NodeCrashed, SimulatedNode

__all__ = ("AnsweringModel", "LivingSystem", "shown_refusal")

T = TypeVar("T")

_codec: Final = Codec()


class Cluster(Protocol):
    """What calls need of the simulation."""

    def living(self, number: int = 0) -> SimulatedNode | None: ...
    async def call(
        self, name: str, arguments: tuple[Any, ...], options: dict[str, Any], number: int = 0
    ) -> Any: ...
    async def call_at(self, function: Callable[[ActorSystem], Awaitable[T]], number: int = 0) -> T: ...


def shown_refusal(refusal: Refused) -> tuple[str, Any]:
    """A refusal's name and plain fields: exceptions themselves are compared by identity."""
    try:
        return _codec.encode_refusal(refusal)
    except AtomicActorsError:
        return type(refusal).__name__, str(refusal)


@define(eq=False)
class AnsweringModel:
    """A model whose refusals are answers, not exceptions."""

    model: SequentialModel[Any]

    def initial(self) -> Any:
        return self.model.initial()

    def apply(self, state: Any, input: Any) -> tuple[Any, Any]:
        try:
            return self.model.apply(state, input)
        except Refused as refusal:
            return state, RefusedWith(shown_refusal(refusal))


@define(eq=False)
class LivingSystem:
    """Passes each call to a node that lives, in that node's process: what `Simulation.system` is."""

    simulation: Cluster
    number: int

    def __getattr__(self, name: str) -> Any:
        simulation, number = self.simulation, self.number
        if name == "dead_letters":
            return _LivingLetters(simulation, number)
        if name == "entity":
            return partial(EntityHandle, cast("ActorSystem", self))
        if inspect.iscoroutinefunction(inspect.getattr_static(ActorSystem, name, None)):

            async def call(*arguments: Any, **options: Any) -> Any:
                return await simulation.call(name, arguments, options, number)

            return call
        node = simulation.living(number)
        if node is None:
            raise NodeCrashed("no node is alive: advance the time first (`advance`)")
        return getattr(node.system, name)


@define(eq=False)
class _LivingLetters:
    """`ActorSystem.dead_letters`, at a node that lives."""

    simulation: Cluster
    number: int

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            def inside(system: ActorSystem) -> Awaitable[Any]:
                answer: Awaitable[Any] = getattr(system.dead_letters, name)(*arguments, **options)
                return answer

            return await self.simulation.call_at(inside, self.number)

        return call
