"""Random histories that keep every promise: a small store, run by chance, one step after the other."""

from __future__ import annotations

from collections import deque
from random import Random

from attrs import define, field

from tests.checkers.story import PARTITIONS, Story, new_story

WORDS = {"complete": "reply", "refuse": "refused", "fail": "failed", "interrupt": "interrupted"}


@define(eq=False)
class Books:
    """What the store has of one entity."""

    log: list[str] = field(factory=list)
    dispatch: tuple[str, ...] = ()
    #: How many members of the dispatch have begun; whether the last of them runs.
    begun: int = 0
    runs: bool = False


@define(eq=False)
class RandomStory:
    """Takes steps until it is told to end; then everything comes to its end."""

    chance: Random
    story: Story = field(factory=new_story)
    books: dict[str, Books] = field(factory=lambda: {entity: Books() for entity in PARTITIONS})
    #: Messages on their way from one partition to another.
    streams: dict[tuple[int, int], deque[tuple[str, str]]] = field(factory=dict)
    calls: dict[str, int] = field(factory=dict)
    #: Handlers that run on at nodes which are no owners any more: (node, entity, uid, attempt).
    ghosts: list[tuple[int, str, str, int]] = field(factory=list)
    messages: int = 0
    nodes: int = 2

    def tell(self, steps: int) -> Story:
        moves = [
            self.accept,
            self.accept,
            self.leave,
            self.take,
            self.take,
            *[self.go_on] * 6,
            self.relay,
            self.lose_owner,
            self.hand_over,
            self.wake_ghost,
        ]
        for _ in range(steps):
            self.story.wait(self.chance.choice((0.0, 0.25)))
            self.chance.choice(moves)()
        self.heal()
        return self.story

    def heal(self) -> None:
        while any(books.log or books.dispatch for books in self.books.values()) or any(self.streams.values()):
            self.story.wait(0.25)
            for _ in range(8):
                self.take()
                self.go_on()
            self.relay()
        while self.ghosts:
            self.wake_ghost()

    def pick(self, entities: list[str]) -> str:
        return self.chance.choice(entities) if entities else ""

    # What callers do.

    def accept(self) -> None:
        entity = self.pick([*PARTITIONS])
        self.messages += 1
        uid = f"m{self.messages}"
        at_head = self.chance.random() < 0.1
        if at_head:
            self.story.accept(uid, entity=entity, source="replayed", at_head=True)
            self.books[entity].log.insert(0, uid)
            return
        self.calls[uid] = self.story.call(uid, entity, verb=self.chance.choice(("ask", "tell")))
        self.story.accept(uid, entity=entity)
        self.books[entity].log.append(uid)
        if self.chance.random() < 0.3:
            self.answer(uid, "accepted")

    def leave(self) -> None:
        for entity, books in self.books.items():
            for uid in books.log:
                if not self.story.attempts.get((entity, uid), 0):
                    books.log.remove(uid)
                    event = self.chance.choice(("withdraw", "expire"))
                    self.story.end(uid, entity=entity, event=event)
                    self.answer(uid, "never")
                    return

    def answer(self, uid: str, word: str) -> None:
        call = self.calls.pop(uid, None)
        if call is not None:
            self.story.answer(call, "unknown" if self.chance.random() < 0.1 else word)  # type: ignore[arg-type]

    # What owners do.

    def take(self) -> None:
        entity = self.pick(
            [entity for entity, books in self.books.items() if books.log and not books.dispatch]
        )
        if not entity:
            return
        books = self.books[entity]
        length = 1
        while (
            length < min(3, len(books.log))
            and not any(self.story.attempts.get((entity, uid), 0) for uid in books.log[: length + 1])
            and self.chance.random() < 0.5
        ):
            length += 1
        books.dispatch, books.log = tuple(books.log[:length]), books.log[length:]
        books.begun, books.runs = 0, False
        self.story.take(*books.dispatch, entity=entity)

    def go_on(self) -> None:
        entity = self.pick([entity for entity, books in self.books.items() if books.dispatch])
        if not entity:
            return
        books, story = self.books[entity], self.story
        if books.runs:
            books.runs = False
            uid = books.dispatch[books.begun - 1]
            if self.chance.random() < 0.7:
                story.stop(uid, entity)
                if books.begun == len(books.dispatch):
                    self.commit(entity, ())
            else:
                story.stop(uid, entity, how="raised")
                self.commit(entity, (uid,))
        else:
            story.begin(books.dispatch[books.begun], entity)
            books.begun += 1
            books.runs = True

    def commit(self, entity: str, raised: tuple[str, ...]) -> None:
        """Commit what returned; what raised fails, is refused or gets another attempt; the rest goes back."""
        books, story = self.books[entity], self.story
        good = books.dispatch[: books.begun - len(raised)]
        rest = books.dispatch[books.begun :]
        event = self.chance.choice(("refuse", "fail", "retry"))
        told = [(uid, "complete") for uid in good]
        if rest:
            story.back(*rest, entity=entity, is_counted=False)
        if raised and event == "retry":
            story.back(*raised, entity=entity, event="retry")
            rest = (*raised, *rest)
        else:
            told += [(uid, event) for uid in raised]
        for uid, end in told:
            story.end(uid, entity=entity, event=end)
        books.log[:0] = rest
        books.dispatch = ()
        story.commit(entity, grows=bool(good) and self.chance.random() < 0.8)
        for uid in good:
            self.send(entity, uid)
        for uid, end in told:
            self.answer(uid, WORDS[end])

    def send(self, source: str, parent: str) -> None:
        for number in range(self.chance.choice((0, 0, 0, 1, 2))):
            target = self.pick([*PARTITIONS])
            uid = f"{parent}>{number}"
            if len(uid) > 9:
                return
            self.story.send(uid, parent, source, target)
            if PARTITIONS[target] == PARTITIONS[source]:
                self.arrive(target, uid)
            else:
                stream = (PARTITIONS[source], PARTITIONS[target])
                self.streams.setdefault(stream, deque()).append((target, uid))

    def arrive(self, target: str, uid: str) -> None:
        self.story.accept(uid, entity=target, source="outbox")
        self.books[target].log.append(uid)

    def relay(self) -> None:
        for stream in self.streams.values():
            if stream:
                self.arrive(*stream.popleft())

    # What goes wrong.

    def lose_owner(self) -> None:
        partition = self.chance.choice((0, 1))
        node = self.story.owners[partition][0]
        crashes = self.chance.random() < 0.5
        # A node that owns both goes on with the other one when it is only paused.
        owned = [number for number, (owner, _) in self.story.owners.items() if owner == node]
        if crashes:
            self.story.fault("crash", node)
            self.ghosts = [ghost for ghost in self.ghosts if ghost[0] != node]
        else:
            self.story.fault("pause", node)
        for number in owned:
            self.take_over(number, crashes=crashes)

    def take_over(self, partition: int, *, crashes: bool) -> None:
        story = self.story
        self.nodes += 1
        before = story.owners[partition][0]
        story.claim(partition, self.nodes)
        for entity, books in self.books.items():
            if PARTITIONS[entity] != partition or not books.dispatch:
                continue
            if books.runs and not crashes:
                uid = books.dispatch[books.begun - 1]
                self.ghosts.append((before, entity, uid, story.attempts[entity, uid]))
            dispatch, books.dispatch = books.dispatch, ()
            if len(dispatch) == 1 and self.chance.random() < 0.5:
                story.settle(*dispatch, entity=entity, event="interrupt")
                self.answer(dispatch[0], "interrupted")
            else:
                story.settle(*dispatch, entity=entity)
                books.log[:0] = dispatch

    def hand_over(self) -> None:
        partition = self.chance.choice((0, 1))
        if any(books.dispatch for entity, books in self.books.items() if PARTITIONS[entity] == partition):
            return
        self.story.free(partition)
        self.nodes += 1
        self.story.claim(partition, self.nodes)

    def wake_ghost(self) -> None:
        if self.ghosts:
            node, entity, uid, attempt = self.ghosts.pop()
            how = "returned" if self.chance.random() < 0.5 else "cancelled"
            self.story.stop(uid, entity, node=node, attempt=attempt, how=how)  # type: ignore[arg-type]
