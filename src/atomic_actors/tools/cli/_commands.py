"""The commands. Each gathers what it needs from the store first, leaves the store, and prints then."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import anyio
import attrs
from attrs import asdict, field, frozen
from cyclopts import App, Parameter
from cyclopts.validators import Number

from atomic_actors._system import ActorSystem
from atomic_actors.base._config import Config, environment_variable
from atomic_actors.base._errors import UnknownMessage
from atomic_actors.base._records import DeadLetter, EntityRef, check_kind, split_message_id
from atomic_actors.base._store_url import url_for_display
from atomic_actors.node.operations._reports import AuditReport, Location
from atomic_actors.tools.cli._misused import Misused
from atomic_actors.tools.cli._nodes import nodes, partitions
from atomic_actors.tools.cli._operation import Place, StoreOptions, config_of, operate
from atomic_actors.tools.cli._screen import Screen, letter_for_machines
from atomic_actors.tools.cli._workers import run
from atomic_actors.tools.demo import run_demo

__all__ = ("app",)

#: More letters than any store keeps.
EVERY: Final = 1_000_000_000
PURGE_AT_ONCE: Final = 1_000

DEFAULT_PLACE: Final = Place()
DEFAULT_STORE: Final = StoreOptions()

Entity = Annotated[str, Parameter(name="KIND/ID", help="The entity, such as account/a-42.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")]
Kind = Annotated[str | None, Parameter(help="Only dead letters of this kind.")]
Ids = Annotated[str, Parameter(name="MESSAGE_ID", help="As `dead-letters list` shows them.")]
AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]


def _version() -> str:
    # The version of the code that runs, which need not be the one that is installed.
    return str(vars(sys.modules["atomic_actors"])["__version__"])


app = App(
    name="atomic-actors",
    help="Virtual actors: run the demo, look at dead letters, check the books.",
    version=_version,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
dead_letters = App(name="dead-letters", help="What failed or was interrupted for good.")
app.command(dead_letters)
app.command(run)
app.command(nodes)
app.command(partitions)


@app.command
def demo(
    *,
    directory: Annotated[
        Path | None, Parameter(help="Where the store and the log are kept. Default: a temporary directory.")
    ] = None,
    url: Annotated[str | None, Parameter(help="A store to use instead of the embedded one.")] = None,
    workers: Annotated[
        int, Parameter(validator=Number(gte=1, lte=64), help="How many processes run the aircraft.")
    ] = 1,
    kills: Annotated[
        int,
        Parameter(
            name=("--kill", "--kills"),
            validator=Number(gte=0),
            help="How often to kill a worker with `kill -9`; with several workers, another one each time.",
        ),
    ] = 1,
    seed: Annotated[int, Parameter(help="Chooses the moments of the kills.")] = 2013,
    limit: Annotated[
        int | None, Parameter(validator=Number(gte=1), help="How many flights to send. Default: all 27,004.")
    ] = None,
) -> int:
    """Send a month of flights, kill workers in the middle, and check every total."""
    return run_demo(directory=directory, url=url, kills=kills, seed=seed, limit=limit, workers=workers)


# Dead letters.


@dead_letters.command(name="list")
def list_letters(
    *,
    kind: Kind = None,
    limit: Annotated[AtLeastOne, Parameter(help="At most so many, the oldest first.")] = 100,
    as_json: AsJson = False,
    store: StoreOptions = DEFAULT_STORE,
) -> int:
    """List dead letters, without what is in them."""
    screen = Screen()
    if kind is not None:
        check_kind(kind)

    async def work(system: ActorSystem) -> list[DeadLetter]:
        with screen.status("reading dead letters"):
            # One more than is shown tells whether that is all.
            return await system.dead_letters.list(kind=kind, limit=limit + 1)

    found = operate(store, screen, work)
    shown = found[:limit]
    if as_json:
        screen.json([letter_for_machines(letter, details=False, payload=False) for letter in shown])
    elif shown:
        screen.letters(shown, more=len(found) > limit)
    else:
        screen.say("no dead letters" + (f" of kind {kind}" if kind else ""))
    return 0


@dead_letters.command(name="show")
def show_letter(
    message_id: Ids,
    /,
    *,
    as_json: AsJson = False,
    payload: Annotated[
        bool, Parameter(help="Show the message's content too; it may be personal data.")
    ] = False,
    store: StoreOptions = DEFAULT_STORE,
) -> int:
    """Show one dead letter with its traceback."""
    screen = Screen()
    split_message_id(message_id)

    async def work(system: ActorSystem) -> DeadLetter:
        return await system.dead_letters.get(message_id)

    letter = operate(store, screen, work)
    if as_json:
        screen.json(letter_for_machines(letter, details=True, payload=payload))
    else:
        screen.letter(letter, payload=payload)
    return 0


@frozen
class _Replays:
    """What became of each letter so far; also when the command is cut off."""

    new: dict[str, str] = field(factory=dict[str, str])
    before: dict[str, str] = field(factory=dict[str, str])
    unknown: list[str] = field(factory=list[str])
    parked: list[str] = field(factory=list[str])

    def show(self, screen: Screen) -> None:
        for message_id, replayed_as in self.new.items():
            screen.say(f"replayed {message_id} as {replayed_as}")
        for message_id, replayed_as in self.before.items():
            screen.say(f"{message_id} was replayed before, as {replayed_as}")
        for message_id in self.unknown:
            screen.error(f"there is no dead letter {message_id}")
        for entity in self.parked:
            screen.say(f"{entity} is parked: nothing runs until `atomic-actors resume {entity}`")


@dead_letters.command(name="replay")
def replay_letters(
    *message_ids: Ids,
    at: Annotated[
        Literal["head", "tail"],
        Parameter(help="Before everything that waits for the entity, or behind it."),
    ] = "tail",
    store: StoreOptions = DEFAULT_STORE,
) -> int:
    """Send dead letters again, each as a new message; asking twice replays once."""
    screen = Screen()
    if not message_ids:
        raise Misused("name the dead letters to replay; `atomic-actors dead-letters list` shows their ids")
    entities = list(dict.fromkeys(split_message_id(message_id)[0] for message_id in message_ids))
    done = _Replays()

    async def replay(system: ActorSystem, message_id: str) -> None:
        try:
            before = (await system.dead_letters.get(message_id)).replayed_as
            receipt = await system.dead_letters.replay(message_id, at)
        except UnknownMessage:
            done.unknown.append(message_id)
            return
        (done.before if before else done.new)[message_id] = receipt.message_id

    async def work(system: ActorSystem) -> None:
        with screen.status("replaying") as status:
            for number, message_id in enumerate(dict.fromkeys(message_ids), start=1):
                status.update(f"replaying {number:,} of {len(message_ids):,}")
                await replay(system, message_id)
            for entity in entities:
                if (await system.where(entity)).is_parked:
                    done.parked.append(str(entity))

    try:
        operate(store, screen, work)
    finally:
        done.show(screen)
    return 1 if done.unknown else 0


@dead_letters.command(name="purge")
def purge_letters(
    *message_ids: Ids,
    kind: Kind = None,
    every: Annotated[bool, Parameter(name="--all", help="All of them, or all of --kind.")] = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), help="Do not ask.")] = False,
    store: StoreOptions = DEFAULT_STORE,
) -> int:
    """Forget dead letters for good: either those named, or all (of a kind)."""
    screen = Screen()
    if bool(message_ids) == every or (kind is not None and not every):
        raise Misused("name the dead letters to purge, or write --all, or --kind KIND --all")
    if not yes and not sys.stdin.isatty():
        raise Misused("purging cannot be undone, and there is no terminal to confirm it; add --yes")
    if kind is not None:
        check_kind(kind)
    for message_id in message_ids:
        split_message_id(message_id)
    choice = _Purge(screen, tuple(dict.fromkeys(message_ids)), kind, yes)
    return operate(store, screen, choice.run)


@frozen
class _Purge:
    """One purge: what was meant, the question, the deed."""

    screen: Screen
    #: None but those of `kind`, or all, where it is empty.
    message_ids: tuple[str, ...]
    kind: str | None
    yes: bool

    async def run(self, system: ActorSystem) -> int:
        with self.screen.status("reading dead letters"):
            letters, unknown = await self._find(system)
        if letters and not self.yes and not await self._confirmed(letters):
            self.screen.say("nothing was purged")
            return 1
        # What died since then was not meant, so it stays.
        ids = [letter.message_id for letter in letters]
        count = 0
        with self.screen.status("purging") as status:
            for start in range(0, len(ids), PURGE_AT_ONCE):
                status.update(f"purging {start:,} of {len(ids):,}")
                count += await system.dead_letters.purge(*ids[start : start + PURGE_AT_ONCE])
        self.screen.say(f"purged {_letters(count)}")
        for message_id in unknown:
            self.screen.error(f"there is no dead letter {message_id}")
        return 1 if unknown else 0

    async def _find(self, system: ActorSystem) -> tuple[list[DeadLetter], list[str]]:
        if not self.message_ids:
            return await system.dead_letters.list(kind=self.kind, limit=EVERY), []
        letters: list[DeadLetter] = []
        unknown: list[str] = []
        for message_id in self.message_ids:
            try:
                letters.append(await system.dead_letters.get(message_id))
            except UnknownMessage:
                unknown.append(message_id)
        return letters, unknown

    async def _confirmed(self, letters: list[DeadLetter]) -> bool:
        lost = sum(letter.replayed_as is None for letter in letters)
        question = f"Purge {_letters(len(letters))}, {lost:,} of them never replayed? [y/N] "
        self.screen.ask(question)
        # Not a blocking read: Ctrl-C has to be seen here too.
        await anyio.wait_readable(sys.stdin.fileno())
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _letters(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"


# The rest of the store.


@app.command
def audit(*, as_json: AsJson = False, store: StoreOptions = DEFAULT_STORE) -> int:
    """Check the books of every partition; exit code 1 if they do not balance."""
    screen = Screen()

    async def work(system: ActorSystem) -> AuditReport:
        with screen.status("adding up"):
            return await system.audit()

    report = operate(store, screen, work)
    if as_json:
        screen.json({**asdict(report), "is_balanced": report.is_balanced})
    else:
        screen.audit(report)
    return 0 if report.is_balanced else 1


@app.command
def where(entity: Entity, /, *, as_json: AsJson = False, store: StoreOptions = DEFAULT_STORE) -> int:
    """Show in which partition an entity lives, and what waits for it."""
    screen = Screen()
    ref = EntityRef.parse(entity)

    async def work(system: ActorSystem) -> Location:
        return await system.where(ref)

    location = operate(store, screen, work)
    if as_json:
        # Whether it lives "here" says nothing: this process owns no partition.
        names = ("partition", "waiting", "dispatched", "is_parked", "version")
        screen.json({**asdict(ref), **{name: getattr(location, name) for name in names}})
    else:
        screen.location(location)
    return 0


@app.command
def pause(entity: Entity, /, *, store: StoreOptions = DEFAULT_STORE) -> int:
    """Park an entity: its turn ends, and what is sent to it waits."""
    screen = Screen()
    ref = EntityRef.parse(entity)
    changed = operate(store, screen, partial(ActorSystem.pause, ref=ref))
    screen.say(f"{ref} is parked now; what is sent to it waits" if changed else f"{ref} was parked already")
    return 0


@app.command
def resume(entity: Entity, /, *, store: StoreOptions = DEFAULT_STORE) -> int:
    """Resume a parked entity."""
    screen = Screen()
    ref = EntityRef.parse(entity)
    changed = operate(store, screen, partial(ActorSystem.resume, ref=ref))
    screen.say(f"{ref} is resumed" if changed else f"{ref} was not parked")
    return 0


@app.command
def config(*, as_json: AsJson = False, place: Place = DEFAULT_PLACE) -> int:
    """Show the settings that the environment and the options make, without secrets."""
    screen = Screen()
    resolved = config_of(place)
    if as_json:
        names = [attribute.name for attribute in _shown_settings()]
        values = {name: _shown(resolved, name) for name in names}
        screen.json({"store": str(resolved.location), **values})
        return 0
    defaults = Config()
    rows = [("store", str(resolved.location), "all below")]
    for attribute in _shown_settings():
        value = _shown(resolved, attribute.name)
        if getattr(place, attribute.name, None) is not None:
            source = f"--{attribute.name}"
        elif getattr(resolved, attribute.name) != getattr(defaults, attribute.name):
            source = environment_variable(attribute.name)
        else:
            source = "default"
        rows.append((attribute.name, "-" if value is None else str(value), source))
    screen.settings(rows)
    return 0


def _shown_settings() -> list[attrs.Attribute[Any]]:
    """What a command line can have: actors and overrides per kind exist only in a program."""
    return [attribute for attribute in attrs.fields(Config) if attribute.name not in ("actors", "kinds")]


def _shown(resolved: Config, name: str) -> Any:
    value = getattr(resolved, name)
    if name == "url":
        return url_for_display(value)
    # The password, and whatever else may be declared a secret one day.
    secret = getattr(attrs.fields(Config), name).metadata["rule"].secret
    return "***" if secret and value is not None else value
