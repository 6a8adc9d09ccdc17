"""The forms of the steps of `aa1_commit`: the name of each, its keys and its arguments, in order.

`python -m atomic_actors.tools.codegen` writes both sides from this: the encoders in `_encoders.py` and the
readers in `lua/*.lua`. Names and types of the arguments are those of the step's record.

A form that was released never changes, because nodes of the release before send it too. A step that has
to say more gets another form, with a name of its own, and `when` tells which one to send.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final, get_type_hints

from msgspec import Struct

from atomic_actors.journal._answers import RelayEntry, Target
from atomic_actors.journal._steps import (
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
    Outgoing,
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
    Resume,
    SettleLost,
    Sweep,
    Take,
    Verdict,
    Withdraw,
)

__all__ = ("FORMS", "ITEMS", "Argument", "Form", "Items", "Kind")


class Kind(Enum):
    """How a value is written, and what its reader makes of it."""

    TEXT = auto()
    BYTES = auto()
    NUMBER = auto()
    FLAG = auto()
    #: A stream's other end: a partition's number, or `service/partition`.
    TARGET = auto()
    #: Written as its position among the policies of the call.
    POLICY = auto()


class Argument(Struct, frozen=True):
    """One argument of a form.

    Args:
        name: what its reader calls it; most are fields of the step's record.
        kind: how it is written.
        source: the expression that its encoder writes; "" for the field of its name.
    """

    name: str
    kind: Kind
    source: str = ""


class Form(Struct, frozen=True, kw_only=True):
    """One way to send a step.

    Args:
        name: the name of the step in a call.
        records: the steps that are sent so.
        keys: what its reader calls the step's keys.
        arguments: all of them, or those before the first list.
        when: the condition under which it is sent, as an expression over `step`; "" for always. Of the
            forms of a step, the first one whose condition holds is sent.
        extends: the form that this one begins with. Its own reader reads only what is new.
        is_sized: whether a call says how many keys and arguments there are. Its encoder is written by hand.
    """

    name: str
    records: tuple[type[Struct], ...]
    keys: tuple[str, ...]
    arguments: tuple[Argument, ...]
    when: str = ""
    extends: str = ""
    is_sized: bool = False


class Items(Struct, frozen=True, kw_only=True):
    """What each member of a list within a form is made of; its reader moves on behind it.

    Args:
        name: what its reader is called.
        form: the form that the list belongs to.
        keys: what its reader calls the keys of one member.
        arguments: those of one member.
    """

    name: str
    form: str
    keys: tuple[str, ...]
    arguments: tuple[Argument, ...]


_KINDS: Final[dict[Any, Kind]] = {
    str: Kind.TEXT,
    str | None: Kind.TEXT,
    bytes: Kind.BYTES,
    bytes | None: Kind.BYTES,
    int: Kind.NUMBER,
    bool: Kind.FLAG,
    Target: Kind.TARGET,
}


#: Fields of a record by name, with spaces between them; in a tuple, also arguments that are not fields.
Arguments = str | tuple[str | Argument, ...]


def _arguments(record: type[Struct], names: Arguments) -> tuple[Argument, ...]:
    """The arguments that fields of a record become; those that are not fields stand among their names."""
    if isinstance(names, str):
        names = (names,)
    types = get_type_hints(record)
    found: list[Argument] = []
    for name in names:
        if isinstance(name, Argument):
            found.append(name)
            continue
        for field in name.split():
            found.append(Argument(field, Kind.POLICY if field == "policy" else _KINDS[types[field]]))
    return tuple(found)


def _form(
    name: str,
    record: type[Struct],
    keys: str,
    arguments: Arguments = (),
    *,
    when: str = "",
    extends: str = "",
    is_sized: bool = False,
) -> Form:
    return Form(
        name=name,
        records=(record,),
        keys=tuple(f"{key}_key" for key in keys.split()),
        arguments=_arguments(record, arguments),
        when=when,
        extends=extends,
        is_sized=is_sized,
    )


def _items(name: str, form: str, record: type[Struct], keys: str, arguments: Arguments = ()) -> Items:
    key_names = tuple(f"{key}_key" for key in keys.split())
    return Items(name=name, form=form, keys=key_names, arguments=_arguments(record, arguments))


_APPEND: Final = "entity uid body digest depth_limit claim policy held_version"
_SENT: Final = "entity uid body"
_PARK: Final = Argument("park", Kind.FLAG, "isinstance(step, Park)")


def _count(name: str) -> Argument:
    """How many members a list of the form has."""
    return Argument(name, Kind.NUMBER)


FORMS: Final = (
    _form(
        "append_key", Append, "record log outcome used", f"{_APPEND} key", when="step.key", extends="append"
    ),
    _form("append", Append, "record log outcome", _APPEND),
    # Several appends to one entity under the same conditions. Each has an answer.
    _form("append_run", Append, "record log", "entity depth_limit claim policy held_version", is_sized=True),
    _form("withdraw", Withdraw, "record log outcome used", "entity uid key"),
    _form("outcome", ReadOutcome, "record outcome", "entity uid"),
    _form(
        "replay_claimed",
        Replay,
        "record log letters new_outcome",
        "entity uid new_uid at_head claim policy held_version",
        when="step.claim",
        extends="replay",
    ),
    _form("replay", Replay, "record log letters new_outcome", "entity uid new_uid at_head"),
    _form("purge", Purge, "letters index", is_sized=True),
    _form("letters", ListDeadLetters, "letters index", "kind after_ms after_id limit message_id"),
    Form(
        name="park",
        records=(Park, Resume),
        keys=("record_key", "log_key"),
        arguments=_arguments(Park, ("entity", _PARK)),
    ),
    _form("inspect", Inspect, "record log", "entity"),
    _form("count", CountKind, "index", "kind"),
    # Then the outbound list of each target of this service, and the streams.
    _form("audit", Audit, "index", is_sized=True),
    _form("take", Take, "record log", "entity claim policy held_version run_limit"),
    _form(
        "finish",
        Finish,
        "record log",
        (
            "entity claim turn expected_version",
            Argument("has_state", Kind.FLAG),
            "state park policy run_limit",
            _count("verdict_count"),
            Argument("has_letters", Kind.FLAG),
            _count("local_count"),
            _count("stream_count"),
        ),
        is_sized=True,
    ),
    # Belongs to the step before it: it is not a step of its own.
    Form(
        name="push",
        records=(),
        keys=(),
        arguments=(Argument("channel", Kind.BYTES), Argument("payload", Kind.BYTES)),
    ),
    # Then the uids.
    _form(
        "interrupt", Interrupt, "record log letters index outcome", "entity claim turn began", is_sized=True
    ),
    _form(
        "settle_lost",
        SettleLost,
        "record log outcome letters index",
        "entity claim uid policy attempt interruptions recovering",
    ),
    _form("defer", Defer, "record log", "entity claim delay_ms"),
    _form("expire", Expire, "record log outcome used letters index", "entity uid key"),
    _form(
        "sweep_own",
        Sweep,
        "streams",
        "claim limit ahead_ms own_from",
        when="step.own_from is not None",
        extends="sweep",
    ),
    _form("sweep_ahead", Sweep, "streams", "claim limit ahead_ms", when="step.ahead_ms", extends="sweep"),
    _form("sweep", Sweep, "streams", "claim limit"),
    _form("relay_read", RelayRead, "streams outbound", "claim target limit"),
    _form("relay_in", RelayIn, "inbound", "source incarnation", is_sized=True),
    _form("relay_in_after_loss", RelayIn, "inbound", "source incarnation", extends="relay_in", is_sized=True),
    _form(
        "relay_ack_of",
        RelayAck,
        "streams outbound",
        "claim target last incarnation",
        when="step.incarnation",
        extends="relay_ack",
    ),
    _form("relay_ack", RelayAck, "streams outbound", "claim target last"),
    _form(
        "claim_anew",
        ClaimPartition,
        "streams",
        "claim node expected_claim expected_renewals epoch_above",
        when="step.new_incarnation",
        extends="claim",
    ),
    _form("claim", ClaimPartition, "", "claim node expected_claim expected_renewals"),
    _form("renew", Renew, "", "claim"),
    _form("release", Release, "", "claim"),
    _form("lease", ReadLease, ""),
)

ITEMS: Final = (
    _items("message of a run", "append_run", Append, "outcome", "uid body"),
    _items("verdict", "finish", Verdict, "outcome", "uid event reply error delay_ms"),
    # Of those that died.
    _items("letters of a turn", "finish", Finish, "letters index"),
    _items("message of the same partition", "finish", Outgoing, "record log", _SENT),
    # After all of those above.
    _items("streams of a turn", "finish", Finish, "streams"),
    _items(
        "stream", "finish", Outgoing, "outbound", (Argument("target", Kind.TARGET), _count("message_count"))
    ),
    _items("message of a stream", "finish", Outgoing, "", _SENT),
    _items("entry", "relay_in", RelayEntry, "record log", "number entity uid body"),
)
