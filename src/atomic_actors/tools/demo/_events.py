"""What the demo's processes tell each other: JSON, one line each.

The parent writes one `Job` and keeps the pipe open; when it closes, the worker stops in good order.
Everything else goes from the worker to the parent.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from atomic_actors.tools.demo._logbook import Logbook

__all__ = (
    "Answers",
    "Event",
    "Finished",
    "InterruptedFlight",
    "Job",
    "Progress",
    "Replayed",
    "Sending",
    "Sent",
    "Started",
    "decode_event",
    "decode_job",
    "encode",
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do.

    The first `accepted` flights are known to be accepted; the worker sends the rest. `restarted` says
    that a worker before this one was killed. `role` is what the process does: everything; run aircraft, until
    its pipe is closed; or send and ask, while others run the aircraft.
    """

    url: str
    namespace: str
    limit: int | None
    accepted: int
    restarted: bool
    role: Literal["all", "host", "sender"] = "all"


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The actor system runs."""

    pid: int
    seconds: float


class InterruptedFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter, as the table shows it."""

    message_id: str
    aircraft: str
    flight: str
    reason: str
    attempts: int


class Replayed(msgspec.Struct, frozen=True, tag="replayed"):
    """Dead letters were found, replayed at the head, and their aircraft resumed."""

    flights: tuple[InterruptedFlight, ...]


class Sending(msgspec.Struct, frozen=True, tag="sending"):
    """From here on flights are sent; what the kill left behind was dealt with."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """`accepted` as in `Job`; `in_turn` counts the flights whose turn has begun and is not committed."""

    accepted: int
    in_turn: int


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """Every flight was accepted; it took so many seconds from `Sending`."""

    seconds: float


class Answers(msgspec.Struct, frozen=True, tag="answers"):
    """What some of the aircraft answered to `GetLogbook`."""

    logbooks: dict[str, Logbook]


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The worker's last word; `waiting` dead letters were not replayed."""

    waiting: int


Event: TypeAlias = Started | Replayed | Sending | Progress | Sent | Answers | Finished

_encoder = msgspec.json.Encoder()
_job_decoder = msgspec.json.Decoder(Job)
_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(message: Job | Event) -> bytes:
    """One line, with its end."""
    return _encoder.encode(message) + b"\n"


def decode_job(line: bytes) -> Job:
    """Read a `Job`.

    Raises:
        msgspec.MsgspecError: the line is not a job.
    """
    return _job_decoder.decode(line)


def decode_event(line: bytes) -> Event:
    """Read an event.

    Raises:
        msgspec.MsgspecError: the line is not an event.
    """
    return _event_decoder.decode(line)
