"""A Hypothesis state machine that compares actors with a plain model, under generated messages, crashes and pauses.

Hypothesis draws what is done; at the end of each example all of it is done in one simulated cluster, and checked. A
failing example is made smaller until nothing can be left out: fewer messages, fewer faults, seed 0.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Final

import trio
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from hypothesis.strategies import DataObject, SearchStrategy

from atomic_actors.actors._messages import Message
from atomic_actors.actors._specs import collect
from atomic_actors.base._errors import AtomicActorsError, UsageError
from atomic_actors.base._records import EntityRef
from atomic_actors.testing.checkers._linearizability import SequentialModel
from atomic_actors.testing.simulation._faults import Moment
from atomic_actors.testing.simulation._simulate import run_simulation
from atomic_actors.testing.simulation._simulation import Simulation
from atomic_actors.testing.strategies._messages import bound_to_anything, entities, messages

__all__ = ("ActorStateMachine",)

#: Where nodes are killed. Before a commit is where most goes wrong, and what a smaller example tends to.
_MOMENTS: Final[tuple[Moment, ...]] = ("commit", "take", "append", "relay", "settle", "claim", "await")
#: How long an ask may take, in virtual seconds: longer than it takes the others to take over from a dead node.
_ASK_TIMEOUT_S: Final = 10.0

Action = Callable[[Simulation, trio.Nursery], Awaitable[None]]


@define(eq=False)
class _Script:
    """What Hypothesis drew for one example."""

    seed: int = 0
    actions: list[Action] = field(factory=list[Action])


class ActorStateMachine(RuleBasedStateMachine):
    """Compares actors with a model of what they do when nothing fails.

    ```python
    class AccountModel:
        def initial(self) -> int:
            return 0

        def apply(self, state: int, input: Deposit | Withdraw) -> tuple[int, int]:
            if isinstance(input, Withdraw):
                if state < input.amount:
                    raise InsufficientFunds(state)
                return state - input.amount, state - input.amount
            return state + input.amount, state + input.amount


    class AccountMachine(ActorStateMachine):
        actors = [Account]
        models = {"account": AccountModel()}


    TestAccount = AccountMachine.TestCase
    ```

    Subclasses set class attributes; they may add rules of their own that call `self.do`.

    Raises:
        SimulationFailed: at the end of an example, if the actors did not do what the models say, or a promise was
            broken.
    """

    #: What runs, as in `Config.actors`.
    actors: ClassVar[Iterable[Any]] = ()
    #: By kind: what one of its entities does. A kind without a model is checked by the rules alone.
    models: ClassVar[Mapping[str, SequentialModel[Any]]] = {}
    #: What is sent; each message that the actors handle where left out.
    messages: ClassVar[SearchStrategy[Message[Any]] | None] = None
    #: The ids of the entities that get messages. Few, so that messages meet.
    ids: ClassVar[Iterable[str]] = ("1", "2")
    #: How many nodes the cluster has.
    nodes: ClassVar[int] = 2
    #: More settings, as of `Config`.
    settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        if not self.actors:
            raise UsageError(f"{type(self).__name__}: set `actors` to the actor classes that it tests")
        self._script = _Script()

    def do(self, action: Callable[[Simulation], Awaitable[None]]) -> None:
        """Do something more in the simulated cluster, behind what was drawn so far."""

        async def alone(simulation: Simulation, _: trio.Nursery) -> None:
            await action(simulation)

        self._script.actions.append(alone)

    # What Hypothesis draws.

    @initialize(seed=st.integers(0, (1 << 32) - 1))
    def begin(self, seed: int) -> None:
        """Draw the simulation's seed: without it every example would have the same schedule."""
        self._script.seed = seed

    @rule(data=st.data())
    def ask(self, data: DataObject) -> None:
        """Send a message and wait for the answer."""
        self.do(partial(_ask, *self._draw(data)))

    @rule(data=st.data())
    def ask_at_once(self, data: DataObject) -> None:
        """Send a message, and go on while it is answered."""
        entity, message = self._draw(data)

        async def begin(simulation: Simulation, nursery: trio.Nursery) -> None:
            nursery.start_soon(_ask, entity, message, simulation)
            await trio.lowlevel.checkpoint()

        self._script.actions.append(begin)

    @rule(moment=st.sampled_from(_MOMENTS), nth=st.integers(1, 5), is_after=st.booleans())
    def crash(self, moment: Moment, nth: int, is_after: bool) -> None:
        """Kill whichever node gets there first."""

        async def kill(simulation: Simulation) -> None:
            before, after = (None, moment) if is_after and moment != "await" else (moment, None)
            if simulation.living() is not None:
                simulation.crash(before=before, after=after, nth=nth)
            await trio.lowlevel.checkpoint()

        self.do(kill)

    @rule(for_s=st.sampled_from((0.1, 1.0, 5.0)))
    def pause(self, for_s: float) -> None:
        """Pause a node, perhaps for longer than its lease."""

        async def stop(simulation: Simulation) -> None:
            if simulation.living() is not None:
                simulation.pause(for_s)
            await trio.lowlevel.checkpoint()

        self.do(stop)

    @rule(seconds=st.sampled_from((0.01, 1.0, 100.0)))
    def advance(self, seconds: float) -> None:
        """Let time pass."""

        async def wait(simulation: Simulation) -> None:
            await simulation.advance(seconds)

        self.do(wait)

    def _draw(self, data: DataObject) -> tuple[EntityRef, Message[Any]]:
        source = (
            data.draw(st.sampled_from(list(self.actors)), "actor") if len(list(self.actors)) > 1 else None
        )
        chosen = [source] if source is not None else list(self.actors)
        strategy = self.messages if self.messages is not None else messages(*chosen)
        message = data.draw(strategy, "message")
        kinds = [
            name
            for name, spec in collect([bound_to_anything(each) for each in self.actors]).items()
            if type(message) in spec.by_type or spec.fallback is not None
        ]
        return data.draw(
            st.sampled_from(kinds).flatmap(lambda kind: entities(kind, self.ids)), "entity"
        ), message

    # What it comes to.

    def teardown(self) -> None:
        """Do all of it, and check."""
        script, models = self._script, self.models
        if not script.actions:
            return

        async def main(simulation: Simulation) -> None:
            async with trio.open_nursery() as nursery:
                for action in script.actions:
                    await action(simulation, nursery)
            await simulation.settle()
            simulation.check(models)

        run_simulation(main, *self.actors, seed=script.seed, nodes=self.nodes, **self.settings)


async def _ask(entity: EntityRef, message: Message[Any], simulation: Simulation) -> None:
    try:
        await simulation.system.ask(entity, message, timeout_s=_ASK_TIMEOUT_S)
    except UsageError:
        raise
    except AtomicActorsError:
        # Whatever it was, it is in the history, and the check says whether it may be.
        return
