"""Whoever waits for the store is cancelled, at each of the places where it can be: nobody gets another one's answer."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from attrs import Factory, define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, Query, handler
from atomic_actors.journal._protocol import Append, Appended, JournalSettings, OutcomeRead, ReadOutcome
from tests.redis.test_wire import body, now_ms, open_journal, send, uid_at
from tests.servers import Server
from tests.system.support import QUICK

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

#: Loop passes before the cancel; a call is over well before the last one.
PASSES = 40
#: A pass may be over before the store has answered: now and then it gets a little time.
PAUSE_EVERY, PAUSE_S = 4, 0.001


async def let_pass(passes: int) -> None:
    for number in range(passes):
        if number % PAUSE_EVERY == PAUSE_EVERY - 1:
            await anyio.sleep(PAUSE_S)
        else:
            await anyio.lowlevel.checkpoint()


async def test_calls_of_the_journal(store_server: Server, namespace: str) -> None:
    answered = 0
    async with open_journal(store_server, JournalSettings(namespace=namespace)) as journal:
        now = await now_ms(journal)
        uids = [uid_at(now) for _ in range(PASSES)]
        for passes, uid in enumerate(uids):
            results: list[object] = []

            async def append(uid: str) -> None:
                results.append(  # noqa: B023
                    await send(journal, Append(partition=0, entity=f"account/{uid}", uid=uid, body=body()))
                )

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(append, uid)
                await let_pass(passes)
                task_group.cancel_scope.cancel()
            answered += len(results)
            # The very next answers belong to the very next calls.
            for other in uids[:passes]:
                read = await send(journal, ReadOutcome(0, f"account/{other}", other))
                assert isinstance(read, OutcomeRead)
                assert read.state in ("unknown", "enqueued")
            again = await send(journal, Append(partition=0, entity=f"account/{uid}", uid=uid, body=body()))
            assert isinstance(again, Appended)
            assert again.uid == uid
            assert again.duplicate or not results
    assert 0 < answered < PASSES


@frozen
class Note(Command[str]):
    word: str


@frozen
class Read(Query[list[str]]):
    pass


@define
class Notes:
    words: list[str] = Factory(list)


class Pad(Actor[Notes], kind="pad"):
    @handler
    async def note(self, message: Note) -> str:
        self.state.words.append(message.word)
        return message.word

    @handler
    async def read(self, message: Read) -> list[str]:
        return self.state.words


async def test_asks(store_server: Server, namespace: str) -> None:
    """It ran once and was kept, or it did not run; everybody else gets the answer to what they asked."""
    config = Config(
        url=store_server.url, namespace=namespace, actors=[Pad], allow_no_persistence=True, **QUICK
    )
    replies: dict[str, str] = {}
    async with ActorSystem(config) as system:

        async def ask(name: str, word: str) -> None:
            replies[word] = await system.ask(Pad.ref(name), Note(word))

        for passes in range(PASSES):
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(ask, "other", f"before {passes}")
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as cancelled:
                        cancelled.start_soon(ask, "one", f"cancelled {passes}")
                        await let_pass(passes)
                        scope.cancel()
                task_group.start_soon(ask, "one", f"after {passes}")
        assert all(word == reply for word, reply in replies.items())
        assert {word for word in replies if word.startswith("before")} == {
            f"before {number}" for number in range(PASSES)
        }
        ran = await system.ask(Pad.ref("one"), Read())
        assert len(ran) == len(set(ran))
        assert set(ran) >= {word for word in replies if not word.startswith("before")}
        report = await system.audit()
        assert report.is_balanced, report.problems
        assert report.completed + report.withdrawn == report.accepted
        assert not report.dead_letters
        gone = [number for number in range(PASSES) if f"cancelled {number}" not in replies]
        assert 0 < len(gone) < PASSES
