"""The answers of a store, with anything in them: each step has a result, or the whole call is refused."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from atomic_actors.journal._protocol import (
    Append,
    Audit,
    ClaimPartition,
    CountKind,
    Defer,
    Expire,
    Finish,
    Inspect,
    Interrupt,
    ListDeadLetters,
    Park,
    Purge,
    ReadLease,
    ReadOutcome,
    RelayAck,
    RelayIn,
    RelayRead,
    Release,
    Renew,
    Replay,
    Step,
    Sweep,
    Take,
    Verdict,
    Withdraw,
)
from atomic_actors.journal.redis._answers import read_results
from atomic_actors.journal.redis._directory import read_entries
from tests.fuzz.corrupter import EXTREME_NUMBERS, corrupt
from tests.fuzz.decoders import BODIES, IDENTITY, NODE, OUTCOMES, UNIQUE
from tests.fuzz.effort import Broken, Target

__all__ = ("ANSWERS", "DIRECTORY_ANSWERS")

_U: Final = UNIQUE.encode()
_DISPATCHED: Final[list[Any]] = [1, 4, 0, 3, b"\x80", _U, BODIES[0], 1, 0]
_LETTER: Final = b"failed\n1\n0\n1900000000000\n\n4\nboom" + BODIES[0]
_TAKEN: Final = Append(partition=0, entity="a/b", uid=UNIQUE, body=BODIES[0])

GOOD: Final[tuple[tuple[Step, list[Any]], ...]] = (
    (_TAKEN, [0, _U, 0, None, *_DISPATCHED]),
    (_TAKEN, [0, _U, 1, OUTCOMES[0], 4, _U, b"key"]),
    (_TAKEN, [2, b"queue_depth_exceeded", b"the entity has 5 messages waiting"]),
    (Take(partition=0, entity="a/b", claim="c", policy=""), [0, *_DISPATCHED, _U, BODIES[1], 1, 0]),
    (Take(partition=0, entity="a/b", claim="c", policy=""), [0, 5, 3, _U, _U]),
    (Take(partition=0, entity="a/b", claim="c", policy=""), [0, 2, 1_900_000_000_000]),
    (
        Finish(
            partition=0,
            entity="a/b",
            claim="c",
            turn=4,
            verdicts=(Verdict(uid=UNIQUE, event="complete"),),
            state=None,
            expected_version=3,
        ),
        [0, 4, 1, _U, *_DISPATCHED],
    ),
    (
        Finish(
            partition=0,
            entity="a/b",
            claim="c",
            turn=4,
            verdicts=(Verdict(uid=UNIQUE, event="complete"),),
            state=None,
            expected_version=3,
        ),
        [1, b"claim"],
    ),
    (Interrupt(partition=0, entity="a/b", claim="c", turn=4, uids=(UNIQUE,)), [0, b"interrupt", BODIES[0]]),
    (Defer(0, "a/b", "c", 5), [0, 1]),
    (Expire(0, "a/b", UNIQUE), [0, 1, BODIES[1]]),
    (Withdraw(0, "a/b", UNIQUE), [0, b"needs_key", None, b"key"]),
    (ReadOutcome(0, "a/b", UNIQUE), [0, b"finished", OUTCOMES[1]]),
    (Replay(partition=0, entity="a/b", uid=UNIQUE, new_uid=UNIQUE, at_head=False), [0, _U, 1]),
    (
        Replay(partition=0, entity="a/b", uid=UNIQUE, new_uid=UNIQUE, at_head=False, claim="c"),
        [0, _U, 0, *_DISPATCHED, _U, BODIES[1], 1, 0],
    ),
    (Purge(0, ("a/b/" + UNIQUE,)), [0, 1]),
    (ListDeadLetters(partition=0), [0, 1, b"a/b/" + _U, _LETTER, b"a/c/" + _U, _LETTER]),
    (Park(0, "a/b"), [0, 0]),
    (Inspect(0, "a/b"), [0, 1, 0, 1, 5, 6, 0]),
    (CountKind(0, "a"), [0, 1, 2, 3]),
    (Audit(0), [0, 0, 1, 2, 3, *range(13)]),
    (Sweep(partition=0, claim="c"), [0, 5, 1, 2, b"a/b", b"3", b"other/3", b"a/c", 4, 1, _U]),
    (RelayRead(0, "c", 1), [0, 1, 5, b"a/b", _U, BODIES[0], b"a/c", _U, BODIES[1]]),
    (RelayIn(partition=1, source=0, incarnation=1, entries=()), [0, 6, b"a/b"]),
    (RelayAck(partition=0, claim="c", target=1, last=5), [0, 3]),
    (ClaimPartition(partition=0, claim="c", node=b"n"), [0, 1, 2, 3]),
    (ClaimPartition(partition=0, claim="c", node=b"n"), [3, IDENTITY.encode(), 4, b"claim", 5]),
    (Renew(0, "c"), [0, 5]),
    (Release(0, "c"), [2, b"dispatched", b"settle the partition's turns first"]),
    (ReadLease(0), [0, IDENTITY.encode(), 4, b"claim", 5]),
)
#: What a store can answer: there are no floats and no maps.
_LEAVES: Final[tuple[Any, ...]] = (None, b"", b"\xff", b"0", b"a/b", *EXTREME_NUMBERS[:-2], [], [b"a", 1])


def _damage(random: Random, answer: list[Any]) -> list[Any]:
    answer = list(answer)
    for _ in range(random.randint(0, 3)):
        # The first item is the library's own word, whatever is stored.
        at = random.randint(1, len(answer))
        old = answer[at] if at < len(answer) else b"a"
        way = random.randrange(6)
        if way == 0:
            del answer[at:]
        elif way == 1:
            answer.insert(at, random.choice(_LEAVES))
        elif way == 2 and isinstance(old, bytes):
            answer[at : at + 1] = [corrupt(random, [old])]
        elif way == 3:
            del answer[at : at + 1]
        else:
            answer[at : at + 1] = [random.choice(_LEAVES)]
    return answer


def _attempt(random: Random) -> None:
    chosen = [random.choice(GOOD) for _ in range(random.randint(1, 4))]
    steps = [step for step, _ in chosen]
    answers = [_damage(random, answer) for _, answer in chosen]
    try:
        results = read_results(steps, answers)
    except Exception as error:
        raise Broken("an answer to one step failed all of them", (steps, answers), error) from error
    if len(results) != len(steps):
        raise Broken(f"{len(results)} results", (steps, answers))


def _attempt_directory(random: Random) -> None:
    row: list[Any] = [IDENTITY.node_id.encode(), 5, NODE.encode(), 0]
    answer = [
        [corrupt(random, [row[0]]), random.choice((0, 5, 2**53)), corrupt(random, [NODE.encode()]), row[3]]
        for _ in range(3)
    ]
    try:
        entries = read_entries([row, *answer])
    except Exception as error:
        raise Broken("an entry of the directory hides the others", answer, error) from error
    assert entries[0].node_id == IDENTITY.node_id


ANSWERS: Final = Target("answers", _attempt, 5_000)
DIRECTORY_ANSWERS: Final = Target("directory", _attempt_directory, 500)
