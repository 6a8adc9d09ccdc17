"""Which tests a mutant has to face, and in which order."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import msgspec

from tests.mutation.mutant import Mutant, Suite

DIFFERENTIAL: Final = "tests/conformance/test_differential.py"
WIRE: Final = "tests/redis/test_wire.py"
WITHOUT_SERVER: Final = "tests/conformance/test_journals.py"


class Selection(msgspec.Struct, frozen=True):
    """Some tests.

    Args:
        name: what they are called in the report.
        targets: what their ids begin with: files, classes or tests.
        names: the tests' own names; none for all.
        having: parts of the ids that they must have.
        lacking: parts that they must not have.
    """

    name: str
    targets: tuple[str, ...]
    names: tuple[str, ...] = ()
    having: tuple[str, ...] = ("asyncio",)
    lacking: tuple[str, ...] = ("asyncio-redis",)

    def takes(self, test: str) -> bool:
        """Whether the test of this id is one of them."""
        name = test.partition("[")[0].rpartition("::")[2]
        return (
            test.startswith(self.targets)
            and (not self.names or name in self.names)
            and all(part in test for part in self.having)
            and not any(part in test for part in self.lacking)
        )


_WALK: Final = Selection("differential", (DIFFERENTIAL,), having=("long_walk", "valkey"), lacking=())

#: From the fastest and most telling to the slowest.
STAGES: Final[dict[Suite, tuple[Selection, ...]]] = {
    Suite.STORE: (
        Selection("conformance", (Suite.STORE,), having=("asyncio-once",)),
        _WALK,
        Selection("other modes", (Suite.STORE,), lacking=("asyncio-once",)),
        Selection("wire", (WIRE,)),
    ),
    Suite.MEMORY: (
        Selection("conformance", (Suite.MEMORY,)),
        Selection("memory", (WITHOUT_SERVER,), lacking=("TestMemoryJournal", "TestGroupCommit")),
        _WALK,
    ),
}


def likely(mutant: Mutant, suite: Suite) -> Selection:
    """The tests that are most likely to notice a mutant."""
    paths = tuple(test for test in mutant.tests if "::" in test)
    names = tuple(test.rpartition("::")[2] for test in mutant.tests)
    targets = (*paths, *([str(suite)] if len(paths) < len(mutant.tests) else []))
    return Selection("likely", targets, names)


def stages_of(mutant: Mutant, suite: Suite, *, wide: bool) -> Generator[Selection]:
    """The tests that a mutant has to face, in order.

    Args:
        mutant: the mutant.
        suite: the journal.
        wide: False for only those that are most likely to notice.
    """
    yield likely(mutant, suite)
    if wide:
        yield from STAGES[suite]
