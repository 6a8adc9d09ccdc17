"""Whatever steps come in whatever order: every journal answers as the reference model does."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import anyio
import pytest
from hypothesis import HealthCheck, given, settings

from atomic_actors.journal._protocol import Audited, ClaimPartition, Journal, JournalSettings, Result, Step
from atomic_actors.journal.commit._commit_queue import CommitLimits
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.memory._journal import MemoryJournal
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.testing.journal_suite._probe import check_counters
from tests.conformance.clock import Clock
from tests.conformance.differential import (
    BATCHES,
    PARTITIONS,
    Drawn,
    World,
    check_structures,
    normalised,
    walk,
)
from tests.servers import KINDS, Server


def new_settings() -> JournalSettings:
    return JournalSettings(
        namespace=f"differential-{secrets.token_hex(8)}",
        partitions=PARTITIONS,
        partition_depth_limit=8,
        partition_dead_letter_limit=4,
    )


async def compare(journal: Journal, model: MemoryJournal, clock: Clock, batches: list[list[Drawn]]) -> None:
    """Send the same steps to both. The model's clock shows the time that the journal's answer had."""
    world = World()

    async def send(steps: Sequence[Step]) -> None:
        answer = await journal.execute(steps)
        world.now_ms = clock.now_ms = answer.now_ms
        expected = await model.execute(steps)
        for step, result, wanted in zip(steps, answer.results, expected.results, strict=True):
            print(f"{step}\n    {result}")
            check(step, result, wanted)
            world.learn(step, result)

    async with journal, model:
        await send(
            [
                ClaimPartition(partition=number, claim=f"claim-{number}", node=b"node")
                for number in range(PARTITIONS)
            ]
        )
        for batch in batches:
            await send([world.step(drawn) for drawn in batch])
        await send(world.last_look())
    check_structures(model)


def check(step: Step, result: Result, wanted: Result) -> None:
    if isinstance(result, Audited):
        check_counters(result)
    assert normalised(result) == normalised(wanted), f"\n{step}\ngot    {result}\nwanted {wanted}"


@given(batches=BATCHES)
def test_group_commit_answers_as_what_it_wraps(batches: list[list[Drawn]]) -> None:
    clock, config = Clock(), new_settings()

    async def main() -> None:
        journal = GroupCommit(
            inner=MemoryJournal(config, now_ms=clock.read_ms), limits=CommitLimits(max_batch_steps=2)
        )
        await compare(journal, MemoryJournal(config, now_ms=clock.read_ms), clock, batches)

    anyio.run(main)


def run_against(server: Server, batches: list[list[Drawn]]) -> None:
    clock, config = Clock(), new_settings()

    async def main() -> None:
        journal = RedisJournal.from_url(server.url, config, allow_no_persistence=True)
        await compare(journal, MemoryJournal(config, now_ms=clock.read_ms), clock, batches)

    anyio.run(main)


@pytest.mark.redis
@pytest.mark.parametrize("server_name", [f"{kind}_server" for kind in KINDS])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES)
def test_redis_answers_as_the_model(
    request: pytest.FixtureRequest, server_name: str, batches: list[list[Drawn]]
) -> None:
    run_against(request.getfixturevalue(server_name), batches)


@pytest.mark.redis
@pytest.mark.parametrize("server_name", [f"{kind}_server" for kind in KINDS])
@pytest.mark.parametrize("seed", range(15))
def test_redis_answers_as_the_model_on_a_long_walk(
    request: pytest.FixtureRequest, server_name: str, seed: int
) -> None:
    run_against(request.getfixturevalue(server_name), walk(seed, 250))
