"""What can go wrong in a simulation, when it does, and how often it did.

*Swarm testing*: a seed first draws which kinds of faults exist at all, and then how often each happens, so that
some runs have one kind alone and much of it (Groce et al., "Swarm Testing", ISSTA 2012).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final, Literal

import trio
from attrs import define, field, frozen

from atomic_actors.journal._protocol import Step

__all__ = ("CALL_FAULTS", "FAULTS", "FRAME_FAULTS", "NODE_FAULTS", "CrashPoint", "Faults", "Moment")

#: What can happen to a node's call to the store.
CALL_FAULTS: Final = (
    "slow request",
    "slow reply",
    "call refused",
    "request lost",
    "reply lost",
    "call torn",
    "call twice",
    "call late",
    "store away",
)
#: What can happen to a doorbell or to a frame between nodes.
FRAME_FAULTS: Final = ("frame lost", "frame late", "frame twice")
#: What can happen to a node.
NODE_FAULTS: Final = (
    "crash",
    "crash at a step",
    "crash at an await",
    "crash, process gone",
    "pause",
    "clock drift",
    "join",
    "leave",
    "deaf",
    "cut off",
)
#: What can happen to the store as a whole.
STORE_FAULTS: Final = ("history lost",)
FAULTS: Final = (*CALL_FAULTS, *FRAME_FAULTS, *NODE_FAULTS, *STORE_FAULTS)

#: The moments that a crash can be asked for, as the steps that they are in the store; "call" is any step.
MOMENTS: Final[dict[str, tuple[str, ...]]] = {
    "append": ("Append",),
    "take": ("Take",),
    "commit": ("Finish",),
    "settle": ("Interrupt", "SettleLost"),
    "relay": ("RelayIn",),
    "acknowledge": ("RelayAck",),
    "claim": ("ClaimPartition",),
    "release": ("Release",),
    "call": (),
}
Moment = Literal[
    "append", "take", "commit", "settle", "relay", "acknowledge", "claim", "release", "call", "await"
]


@frozen
class CrashPoint:
    """Where a node dies: at the `nth` step of these kinds (any kind where there are none).

    `before`: the step never reached the store. `after`: it did, and the node never heard of it. `late`: it reaches
    the store only when the node's successor may be at work already. Steps before it in the same call did happen,
    those behind it did not, or come with it where it is late.
    """

    kinds: tuple[str, ...]
    nth: int
    side: Literal["before", "after", "late"]


@define(eq=False)
class Faults:
    """The faults of one run.

    Args:
        rng: decides what happens.
        kinds: which faults exist.
        call_rate: how likely a call to the store meets one.
        frame_rate: how likely a doorbell or a frame does.
        on_fired: told of each fault: the node's number, the kind, and details.
    """

    rng: random.Random
    kinds: Collection[str]
    call_rate: float
    frame_rate: float
    on_fired: Callable[[int, str, str], None]
    fired: Counter[str] = field(factory=Counter[str], init=False)
    #: How many steps nodes have sent to the store, by kind: what lives do, and what watching takes.
    step_kinds: Counter[str] = field(factory=Counter[str], init=False)
    store_away_until_s: float = field(default=0.0, init=False)
    _call_kinds: tuple[str, ...] = field(init=False)
    _frame_kinds: tuple[str, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(FAULTS))
        if unknown:
            raise ValueError(f"faults: there is no {unknown[0]!r}; there are {', '.join(FAULTS)}")
        self._call_kinds = tuple(kind for kind in CALL_FAULTS if kind in self.kinds)
        self._frame_kinds = tuple(kind for kind in FRAME_FAULTS if kind in self.kinds)

    def clear(self) -> None:
        """From now on nothing new goes wrong."""
        self._call_kinds = self._frame_kinds = ()
        self.kinds = ()
        self.store_away_until_s = 0.0

    def fire(self, node: int, kind: str, detail: str = "") -> None:
        """A fault happens now."""
        self.fired[kind] += 1
        self.on_fired(node, kind, detail)

    def draw_call(self, node: int) -> str:
        """What happens to the next call of a node; "" for nothing."""
        if not self._call_kinds or self.rng.random() >= self.call_rate:
            return ""
        kind = self.rng.choice(self._call_kinds)
        self.fire(node, kind)
        if kind == "store away":
            self.store_away_until_s = trio.current_time() + self.rng.choice((0.05, 0.3, 1.0))
        return kind

    def draw_frame(self, node: int) -> str:
        """What happens to the next doorbell or frame for a node; "" for nothing."""
        if not self._frame_kinds or self.rng.random() >= self.frame_rate:
            return ""
        kind = self.rng.choice(self._frame_kinds)
        self.fire(node, kind)
        return kind

    def delay_s(self) -> float:
        """How long something takes that takes long."""
        return self.rng.choice((0.001, 0.01, 0.05, 0.2, 0.6))

    def count(self, step: Step) -> None:
        """A step reaches the store."""
        self.step_kinds[type(step).__name__] += 1
