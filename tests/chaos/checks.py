"""What must hold after whatever happened: the books, the witness file, and then, with replays, the total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import anyio
from attrs import define, frozen

from atomic_actors import ActorSystem, DeadLetter
from atomic_actors.node.operations._reports import AuditReport
from tests.chaos.bank import OPENING, Account, Book, Look, Witness
from tests.chaos.workload import Clients, Plan, done, make_config, target_of

__all__ = ("Line", "Verdict", "check_owners", "check_witness", "finish", "read_witness", "wait_quiet")

#: Enough for what is left to end, on a busy machine.
PATIENCE_S = 60.0


@frozen
class Line:
    """One line of the witness file."""

    #: `begun`, `done`, `raised` or `cancelled`.
    what: str
    message_id: str
    attempt: int
    token: int
    process: int
    sort: str
    at_ns: int

    @property
    def entity(self) -> str:
        return self.message_id.rpartition("/")[0]


@define
class Verdict:
    """What was found at the end."""

    starts: int
    #: Transactional handlers that were run again after a crash, and those of them whose attempt did not grow.
    again: int
    same_attempt: int
    dead_letters: int
    accepted: int
    told: Counter[str]
    balances: dict[str, int]
    #: How the turns of paused processes ended that overlapped a turn of another owner.
    zombies: Counter[str]


def read_witness(plan: Plan) -> list[Line]:
    # The process may have been killed before its first line.
    text = plan.witness_path.read_text() if plan.witness_path.exists() else ""
    return [
        Line(parts[0], parts[1], int(parts[2]), int(parts[3]), int(parts[4]), parts[5], int(parts[6]))
        for parts in map(str.split, text.split("\n")[:-1])
    ]


def check_owners(lines: list[Line], paused: Collection[int] = ()) -> Counter[str]:
    """Never two owners' turns at the same time for an entity, nor an owner after a later one.

    Only the processes in `paused` may break that, as they could not know; returns how their turns ended that
    another owner's overlapped. Whether they *committed* shows in the books.
    """
    last_word = {line.process: number for number, line in enumerate(lines)}
    running: dict[str, Line] = {}
    tokens: dict[str, Line] = {}
    zombies: dict[tuple[str, int, int], Line] = {}
    ends: Counter[str] = Counter()
    for number, line in enumerate(lines):
        turn = (line.message_id, line.attempt, line.token)
        other = running.get(line.entity)
        if line.what != "begun":
            if other is not None and (other.message_id, other.attempt, other.token) == turn:
                del running[line.entity]
            else:
                assert zombies.pop(turn, None), f"the end of a turn that never began: {line}"
                ends[line.what] += 1
            continue
        if other is not None:
            is_dead = other.process != line.process and last_word[other.process] < number
            assert is_dead or other.process in paused, f"two turns at once: {other} and {line}"
            if not is_dead:
                zombies[other.message_id, other.attempt, other.token] = other
        highest = tokens.get(line.entity, line)
        if line.token < highest.token:
            assert line.process in paused, f"an owner came back after a later one: {line} after {highest}"
        else:
            tokens[line.entity] = line
        running[line.entity] = line
    ends["unended"] += len(zombies)
    return +ends


def check_witness(starts: list[Line]) -> tuple[int, int]:
    """No turn started twice. Returns the transactional ones that ran again."""
    effectful = Counter(start.message_id for start in starts if start.sort == "e")
    twice = [message_id for message_id, count in effectful.items() if count > 1]
    assert not twice, f"effectful handlers started twice: {twice}"
    by_claim = Counter((start.message_id, start.attempt, start.token) for start in starts)
    twice = [key[0] for key, count in by_claim.items() if count > 1]
    assert not twice, f"started twice by the same owner as the same attempt: {twice}"
    again = sum(count - 1 for count in Counter(start.message_id for start in starts).values())
    by_attempt = Counter((start.message_id, start.attempt) for start in starts)
    return again, sum(count - 1 for count in by_attempt.values())


async def wait_quiet(system: ActorSystem) -> AuditReport:
    """Return once nothing waits, runs or is on its way."""
    report = await system.audit()
    with anyio.move_on_after(PATIENCE_S):
        while report.enqueued or report.dispatched or report.outbound:
            await anyio.sleep(0.01)
            report = await system.audit()
    assert (report.enqueued, report.dispatched, report.outbound) == (0, 0, 0), report
    assert report.is_balanced, report.problems
    # What a turn asked is withdrawn if the turn is cut off before that began.
    ended = report.completed + report.failed + report.interrupted + report.expired + report.withdrawn
    assert report.accepted == ended, report
    return report


async def _counters_by_partition(plan: Plan, system: ActorSystem) -> dict[str, Book]:
    return {name: await system.ask(Account.ref(name), Look(), timeout_s=30) for name in plan.names}


def _name(letter: DeadLetter) -> str:
    return f"{letter.message['stream']}#{letter.message['number']}"


async def finish(plan: Plan, *, outages: bool = False, paused: Collection[int] = ()) -> Verdict:
    """Start once more, let the clients end what they had begun, and check everything; then replay.

    `paused` are the processes that were stopped for longer than a lease.
    """
    witness = Witness(plan.witness_path, 0.001)
    try:
        async with ActorSystem(make_config(plan, witness)) as system:
            clients = Clients(plan, system, outages)
            # Without an end of its own, each client re-sends the place it was at when its process died.
            clients.stop = not plan.places
            if clients.stop:
                await _send_once_more(clients)
            else:
                await clients.run()
            verdict = await check_all(plan, system, clients.told, paused)
    finally:
        witness.close()
    return verdict


async def _send_once_more(clients: Clients) -> None:
    plan = clients.plan
    async with anyio.create_task_group() as group:
        for client in range(plan.clients):
            group.start_soon(clients._send, client, done(plan, client))


async def check_all(
    plan: Plan, system: ActorSystem, told: Counter[str], paused: Collection[int] = ()
) -> Verdict:
    await wait_quiet(system)
    books = await _counters_by_partition(plan, system)
    letters = await system.dead_letters.list(limit=1_000_000)
    assert {(letter.reason, letter.replayed_as) for letter in letters} <= {("interrupted", None)}
    assert {letter.name for letter in letters} <= {"SlowMove", "SlowReceive"}
    for name, book in books.items():
        ref = Account.ref(name)
        dead = {_name(letter): letter for letter in letters if letter.entity == ref}
        assert len(dead) == sum(letter.entity == ref for letter in letters)
        _check_book(plan, name, book, dead)
    in_letters = sum(letter.message["amount"] for letter in letters if letter.name == "SlowReceive")
    assert sum(book.amount for book in books.values()) + in_letters == OPENING * plan.accounts
    _check_pairs(books, letters)

    for letter in letters:
        await system.dead_letters.replay(letter.message_id)
    report = await wait_quiet(system)
    books = await _counters_by_partition(plan, system)
    for name, book in books.items():
        assert not book.gaps, (name, book)
        assert not book.wrong, (name, book)
    assert sum(book.amount for book in books.values()) == OPENING * plan.accounts
    _check_pairs(books, [])
    assert report.interrupted == len(letters)
    lines = read_witness(plan)
    zombies = check_owners(lines, paused)
    starts = [line for line in lines if line.what == "begun"]
    again, same_attempt = check_witness(starts)
    balances = {name: book.amount for name, book in books.items()}
    return Verdict(len(starts), again, same_attempt, len(letters), report.accepted, told, balances, zombies)


def _check_book(plan: Plan, name: str, book: Book, dead: dict[str, DeadLetter]) -> None:
    """Before any replay: what is missing is dead, and what is dead is missing; all else came in order."""
    assert not book.wrong, (name, book)
    assert not book.late, (name, book)
    ends = {gap for gap in dead if int(gap.rpartition("#")[2]) > book.last.get(gap.rpartition("#")[0], 0)}
    assert set(book.gaps) | ends == set(dead), (name, set(book.gaps) ^ set(dead))
    assert len(book.gaps) == len(set(book.gaps))
    for client in range(plan.clients):
        stream = f"client-{client}"
        sent = [
            number
            for target, number in (target_of(plan, client, place) for place in range(done(plan, client)))
            if target == name
        ]
        known = {f"{stream}#{number}" for number in range(1, book.last.get(stream, 0) + 1)} | set(dead)
        lost = [number for number in sent if f"{stream}#{number}" not in known]
        assert not lost, f"{name}: accepted from {stream}, and gone: {lost}"


def _check_pairs(books: dict[str, Book], letters: list[DeadLetter]) -> None:
    """What each account sent to each other one arrived there, or is a dead letter there."""
    for name, book in books.items():
        for to, sent in book.sent.items():
            numbers = [books[to].last.get(name, 0)]
            numbers += [
                letter.message["number"]
                for letter in letters
                if letter.entity.id == to and letter.message["stream"] == name
            ]
            assert max(numbers) == sent, f"{name} sent {sent} to {to}, where the last is {max(numbers)}"
