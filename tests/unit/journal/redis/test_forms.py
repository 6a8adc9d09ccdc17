"""The forms of steps: those that were released stay, and the encoders write what the forms say."""

from __future__ import annotations

from typing import get_args

import pytest

from atomic_actors.journal._answers import RelayEntry
from atomic_actors.journal._protocol import (
    Append,
    Audit,
    Finish,
    Interrupt,
    JournalSettings,
    Outgoing,
    Purge,
    RelayIn,
    Step,
    Verdict,
)
from atomic_actors.journal.redis._forms import FORMS, ITEMS, Argument, Kind
from atomic_actors.journal.redis._wire import Wire

APPEND = "entity uid body digest depth_limit claim policy held_version"
FINISH = (
    "entity claim turn expected_version has_state state park policy run_limit "
    "verdict_count has_letters local_count stream_count"
)

#: Nodes of the release before send these, and the library of the release after must read them: never change one.
RELEASED = {
    "append": ("record log outcome", APPEND),
    "append_key": ("record log outcome used", f"{APPEND} key"),
    "append_run": ("record log", "entity depth_limit claim policy held_version"),
    "withdraw": ("record log outcome used", "entity uid key"),
    "outcome": ("record outcome", "entity uid"),
    "replay": ("record log letters new_outcome", "entity uid new_uid at_head"),
    "purge": ("letters index", ""),
    "letters": ("letters index", "kind after_ms after_id limit message_id"),
    "park": ("record log", "entity park"),
    "inspect": ("record log", "entity"),
    "count": ("index", "kind"),
    "audit": ("index", ""),
    "take": ("record log", "entity claim policy held_version run_limit"),
    "finish": ("record log", FINISH),
    "push": ("", "channel payload"),
    "interrupt": ("record log letters index outcome", "entity claim turn began"),
    "settle_lost": (
        "record log outcome letters index",
        "entity claim uid policy attempt interruptions recovering",
    ),
    "defer": ("record log", "entity claim delay_ms"),
    "expire": ("record log outcome used letters index", "entity uid key"),
    "sweep": ("streams", "claim limit"),
    "sweep_ahead": ("streams", "claim limit ahead_ms"),
    "sweep_own": ("streams", "claim limit ahead_ms own_from"),
    "relay_read": ("streams outbound", "claim target limit"),
    "relay_in": ("inbound", "source incarnation"),
    "relay_in_after_loss": ("inbound", "source incarnation"),
    "relay_ack": ("streams outbound", "claim target last"),
    "relay_ack_of": ("streams outbound", "claim target last incarnation"),
    "claim": ("", "claim node expected_claim expected_renewals"),
    "claim_anew": ("streams", "claim node expected_claim expected_renewals epoch_above"),
    "renew": ("", "claim"),
    "release": ("", "claim"),
    "lease": ("", ""),
}

SETTINGS = JournalSettings(namespace="n", partitions=4)
PREFIX = b"{n:default:0}"
HEAD = 9


def test_released_forms_stay() -> None:
    forms = {form.name: form for form in FORMS}
    for name, (keys, arguments) in RELEASED.items():
        assert forms[name].keys == tuple(f"{key}_key" for key in keys.split()), name
        assert tuple(argument.name for argument in forms[name].arguments) == tuple(arguments.split()), name


def test_released_lists_stay() -> None:
    assert {
        items.name: (items.form, items.keys, [one.name for one in items.arguments]) for items in ITEMS
    } == {
        "message of a run": ("append_run", ("outcome_key",), ["uid", "body"]),
        "verdict": ("finish", ("outcome_key",), ["uid", "event", "reply", "error", "delay_ms"]),
        "letters of a turn": ("finish", ("letters_key", "index_key"), []),
        "message of the same partition": (
            "finish",
            ("record_key", "log_key"),
            ["entity", "uid", "body"],
        ),
        "streams of a turn": ("finish", ("streams_key",), []),
        "stream": ("finish", ("outbound_key",), ["target", "message_count"]),
        "message of a stream": ("finish", (), ["entity", "uid", "body"]),
        "entry": ("relay_in", ("record_key", "log_key"), ["number", "entity", "uid", "body"]),
    }


def test_every_step_has_a_form_and_an_encoder() -> None:
    steps = set(get_args(Step))
    assert {record for form in FORMS for record in form.records} == steps
    assert len({form.name for form in FORMS}) == len(FORMS)


# The encoders that are written by hand.


def value_bytes(argument: Argument, value: object, policies: list[bytes]) -> bytes:
    if argument.kind is Kind.POLICY:
        return b"%d" % (policies.index(str(value).encode()) + 1)
    if argument.kind is Kind.FLAG:
        return b"1" if value else b"0"
    return value if isinstance(value, bytes) else str(value).encode()


def read_call(step: Step, *more: Step, **values: object) -> tuple[list[bytes], list[bytes]]:
    """The keys and arguments behind those that the step's form names, which are checked against the step."""
    call = Wire(SETTINGS).encode([step, *more])
    partitions, policies = int(call.arguments[HEAD - 2]), int(call.arguments[HEAD - 1])
    texts = call.arguments[HEAD : HEAD + policies]
    name, position, key_count, argument_count, *own = call.arguments[HEAD + policies + partitions :]
    form = next(form for form in FORMS if form.name == name.decode())
    assert position == b"1"
    keys = call.keys[4 * partitions :]
    assert (int(key_count), int(argument_count)) == (len(keys), len(own))
    expected = [
        value_bytes(argument, values.get(argument.name, getattr(step, argument.name, None)), texts)
        for argument in form.arguments
    ]
    assert own[: len(expected)] == expected
    return keys[len(form.keys) :], own[len(expected) :]


def names_of(*names: str) -> list[bytes]:
    return [PREFIX + name.encode() for name in names]


def test_finish() -> None:
    outbox = (
        Outgoing(partition=0, entity="k/2", uid="m1", body=b"b1"),
        Outgoing(partition=2, entity="k/3", uid="m2", body=b"b2"),
        Outgoing(partition=2, entity="k/4", uid="m3", body=b"b3"),
        Outgoing(partition=1, entity="k/5", uid="m4", body=b"b4", service="other"),
    )
    verdicts = (
        Verdict(uid="u1", event="complete", reply=b"r1", error=b"e1", delay_ms=0),
        Verdict(uid="u2", event="fail", reply=b"r2", error=b"e2", delay_ms=7),
    )
    step = Finish(
        partition=0,
        entity="k/1",
        claim="c",
        turn=5,
        verdicts=verdicts,
        state=b"state",
        expected_version=4,
        outbox=outbox,
        park=True,
        policy="p",
        run_limit=3,
    )
    counts = {"verdict_count": 2, "local_count": 1, "stream_count": 2}
    keys, arguments = read_call(step, has_state=True, has_letters=True, **counts)
    verdict_arguments = [b"u1", b"complete", b"r1", b"e1", b"0", b"u2", b"fail", b"r2", b"e2", b"7"]
    assert arguments == [
        *verdict_arguments,
        *(b"k/2", b"m1", b"b1"),
        *(b"2", b"2", b"k/3", b"m2", b"b2", b"k/4", b"m3", b"b3"),
        *(b"other/1", b"1", b"k/5", b"m4", b"b4"),
    ]
    assert keys == names_of(
        *(":o:k/1/u1", ":o:k/1/u2", ":dl", ":dlx", ":e:k/2", ":q:k/2", ":w", ":x:2", ":x:other/1")
    )


def test_finish_with_little() -> None:
    step = Finish(
        partition=0,
        entity="k/1",
        claim="c",
        turn=5,
        verdicts=(Verdict(uid="u1", event="complete"),),
        state=None,
        expected_version=4,
    )
    counts = {"verdict_count": 1, "local_count": 0, "stream_count": 0}
    keys, arguments = read_call(step, has_state=False, state=b"", has_letters=False, **counts)
    assert keys == names_of(":o:k/1/u1")
    assert arguments == [b"u1", b"complete", b"", b"", b"0"]


def test_a_run_of_appends() -> None:
    first, second = (
        Append(
            partition=0,
            entity="k/1",
            uid=uid,
            body=b"b" + uid.encode(),
            claim="c",
            policy="p",
            held_version=6,
            depth_limit=9,
        )
        for uid in ("u1", "u2")
    )
    keys, arguments = read_call(first, second)
    assert keys == names_of(":o:k/1/u1", ":o:k/1/u2")
    assert arguments == [b"u1", b"bu1", b"u2", b"bu2"]


def test_interrupt() -> None:
    keys, arguments = read_call(Interrupt(partition=0, entity="k/1", claim="c", turn=5, uids=("u1", "u2")))
    assert (keys, arguments) == ([], [b"u1", b"u2"])


@pytest.mark.parametrize("after_loss", [False, True])
def test_relay_in(after_loss: bool) -> None:
    entries = (RelayEntry(8, "k/1", "u1", b"b1"), RelayEntry(9, "k/2", "u2", b"b2"))
    keys, arguments = read_call(
        RelayIn(partition=0, source="other/3", incarnation=17, entries=entries, after_loss=after_loss)
    )
    assert keys == names_of(":e:k/1", ":q:k/1", ":e:k/2", ":q:k/2")
    assert arguments == [b"8", b"k/1", b"u1", b"b1", b"9", b"k/2", b"u2", b"b2"]


def test_purge_and_audit() -> None:
    assert read_call(Purge(0, ("k/1/u1", "k/1/u2"))) == ([], [b"k/1/u1", b"k/1/u2"])
    keys, arguments = read_call(Audit(0))
    assert keys == names_of(":x:0", ":x:1", ":x:2", ":x:3", ":w")
    assert len(arguments) == 1
