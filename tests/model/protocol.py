"""The message protocol as a system that can be searched, and its traces as text for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.model.actions import STEP_NAMES, Actions, Label
from tests.model.configurations import Configuration
from tests.model.invariants import Invariants
from tests.model.search import Trace
from tests.model.states import StepKind
from tests.model.store import ENDINGS

__all__ = ("Protocol", "describe", "render", "words")


class Protocol:
    """One configuration of the protocol, for `search`.

    Args:
        configuration: what there is and what may go wrong.
        only: the names of the invariants that are checked; all by default. `unfinished` is the one that is
            checked where nothing can move any more.
    """

    def __init__(self, configuration: Configuration, only: tuple[str, ...] = ()) -> None:
        self.configuration = configuration
        self.actions = Actions(configuration)
        self.invariants = Invariants(self.actions)
        self.moves = self.actions.moves
        self.faults = self.actions.faults
        self._checks: list[Callable[[bytes], str | None]] = [
            getattr(self.invariants, name) for name in only if name != "unfinished"
        ]
        self.wrong = self.invariants.check if not only else self._check_chosen
        self._rest_counts = not only or "unfinished" in only

    def first(self) -> bytes:
        """The state in which nothing has happened."""
        return self.actions.shape.first()

    def _check_chosen(self, state: bytes) -> str | None:
        return next((broken for check in self._checks if (broken := check(state)) is not None), None)

    def wrong_at_rest(self, state: bytes) -> str | None:
        """What has still to happen where nothing can."""
        return self.invariants.unfinished(state) if self._rest_counts else None


def words(trace: Trace[bytes, Label]) -> list[str]:
    """A trace as one short line an action, without its numbers: `A sends take`, `fails over`."""
    return [describe(label, short=True) for label, _ in trace.steps]


def describe(label: Label, *, short: bool = False) -> str:
    """One action as a line.

    Args:
        label: the action.
        short: leave out everything but who and what.
    """
    word, *rest = label
    numbers = [item for item in rest if isinstance(item, int)]
    if word in ("appends", "withdraws", "append arrives again", "append without answer"):
        return f"client {word}" if short else f"client {word}: message {numbers[0]}"
    if len(numbers) == 9:
        node, *step = numbers
        text = f"node {'AB'[node]} {word} {STEP_NAMES[StepKind(step[0])]}"
        return text if short else f"{text} ({_details(step)})"
    if len(numbers) == 8:
        text = f"{STEP_NAMES[StepKind(numbers[0])]} {word}"
        return text if short else f"{text} ({_details(numbers)})"
    if not rest:
        return f"store {word}"
    text = f"node {'AB'[numbers[0]]} {word}"
    if short or len(numbers) < 2:
        return text
    concerned = "partition" if word == "gives up" else "entity" if word == "cuts" else "message"
    ending = f", {rest[-1]}" if isinstance(rest[-1], str) else ""
    return f"{text}: {concerned} {numbers[1]}{ending}"


def _details(step: list[int]) -> str:
    kind, where, message, turn, claim, first, _, third = step
    match StepKind(kind):
        case StepKind.APPEND:
            return f"message {message - 1}, claim {claim}"
        case StepKind.TAKE:
            return f"entity {where}, claim {claim}"
        case StepKind.FINISH:
            return f"message {message - 1}, turn {turn}, claim {claim}, version {first}, {ENDINGS[third - 1].value}"
        case StepKind.INTERRUPT:
            return (
                f"message {message - 1}, turn {turn}, claim {claim}, {'began' if first else 'did not begin'}"
            )
        case StepKind.CLAIM_PARTITION:
            return f"partition {where}, claim {claim}, in place of {first or 'none'}"
        case StepKind.RELEASE:
            return f"partition {where}, claim {claim}"
        case StepKind.RELAY_IN:
            following = f" and {first - 1}" if first else ""
            return f"to partition {where}, from number {turn}: message {message - 1}{following}"
        case _:
            return f"partition {where}, up to number {turn}, claim {claim}"


def render(trace: Trace[bytes, Label]) -> Iterator[str]:
    """A trace as numbered lines."""
    for number, (label, _) in enumerate(trace.steps, start=1):
        yield f"{number:3}  {describe(label)}"
