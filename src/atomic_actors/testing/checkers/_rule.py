"""What the rules over a history have in common: records go in one by one, violations come out.

A store that comes back as it was some time ago (`Fault.what == "history lost"`) takes promises with it, as the page
on guarantees says. Each rule then forgets what it knew of the partitions concerned (`Rule.forget`) and says in its
own words what it no longer asks for. `Fault.detail` names them by number, with commas or blanks between; anything
else there, or nothing, means all of them. An entity whose partition no dispatch has shown yet counts as concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from attrs import frozen

from atomic_actors.testing.checkers._history import Fault, Record, Taken

__all__ = ("HISTORY_LOST", "Rule", "Violation", "is_crash", "lost_partitions")

#: `Fault.what` where the store has forgotten something.
HISTORY_LOST: Final = "history lost"


@frozen(kw_only=True)
class Violation:
    """A promise that was broken, and where."""

    rule: str
    at_s: float
    #: `kind/id`, or "" where it is about none.
    entity: str
    text: str
    #: The index of the record that broke it.
    position: int

    def __str__(self) -> str:
        about = f" {self.entity}:" if self.entity else ""
        return f"[{self.rule}]{about} {self.text} (at {self.at_s:.3f} s, record {self.position})"


def lost_partitions(fault: Fault) -> frozenset[int] | None:
    """The partitions whose history a fault took; None for all of them."""
    words = fault.detail.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        return None
    return frozenset(map(int, words))


def is_crash(fault: Fault) -> bool:
    """Whether nothing runs any more at the fault's node."""
    return fault.node > 0 and "crash" in fault.what


class Rule:
    """One promise, checked over a history.

    Args:
        healed: the history goes on, without faults, until nothing is left to do: then what was begun has to have
            ended.
    """

    #: What violations call it.
    name: ClassVar[str]

    def __init__(self, *, healed: bool = False) -> None:
        self.healed = healed
        #: The index of the record that is looked at.
        self.position = -1
        self.at_s = 0.0
        self.partition_of: dict[str, int] = {}
        self.violations: list[Violation] = []
        self._looks = self.looks()

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        raise NotImplementedError

    def see(self, record: Record) -> None:
        """Look at the next record."""
        self.position += 1
        self.at_s = record.at_s
        if isinstance(record, Taken):
            self.partition_of[record.entity] = record.partition
        elif isinstance(record, Fault) and record.what == HISTORY_LOST:
            self.forget(lost_partitions(record))
        look = self._looks.get(type(record))
        if look is not None:
            look(record)

    def end(self) -> list[Violation]:
        """There are no more records: what was broken, in the order in which it was found."""
        self.close()
        return self.violations

    def forget(self, partitions: frozenset[int] | None) -> None:
        """These partitions (None: all) may have lost what they knew."""
        raise NotImplementedError

    def close(self) -> None:
        """Report what is missing; by default nothing has to be there."""

    def is_concerned(self, entity: str, partitions: frozenset[int] | None) -> bool:
        """Whether an entity may be in one of these partitions."""
        if partitions is None:
            return True
        partition = self.partition_of.get(entity)
        return partition is None or partition in partitions

    def report(
        self, entity: str, text: str, *, position: int | None = None, at_s: float | None = None
    ) -> None:
        """Note a violation: of the record that is looked at, or of another one.

        Args:
            entity: whom it is about, or "".
            text: what is wrong, in one line.
            position: the other record's index.
            at_s: the other record's time.
        """
        self.violations.append(
            Violation(
                rule=self.name,
                at_s=self.at_s if at_s is None else at_s,
                entity=entity,
                text=text,
                position=self.position if position is None else position,
            )
        )
