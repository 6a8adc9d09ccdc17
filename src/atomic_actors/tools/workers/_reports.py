"""What a worker tells its parent: JSON, one line each, over a socket pair.

The parent says nothing. That its side is closed is all that a worker needs to know.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, TypeAlias

import msgspec
from attrs import define, field

__all__ = ("Failed", "Numbers", "Ready", "Report", "ReportReader", "Reporter")

#: A traceback that is longer loses its beginning.
TEXT_MAX: Final = 20_000
RECEIVE_BYTES: Final = 65_536


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The system is entered; from here on the worker serves."""

    store: str
    #: 0 where running turns may take as long as they like.
    drain_timeout_s: float


class Numbers(msgspec.Struct, frozen=True, tag="numbers", kw_only=True):
    """What the worker does; once a second. `at_s` is a time of its own clock."""

    at_s: float
    turns: int
    owned: int
    partitions: int
    activations: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why the worker ends: one line, an exit code, and a traceback where a person needs one."""

    text: str
    code: int
    traceback: str = ""


Report: TypeAlias = Ready | Numbers | Failed

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


@define(eq=False)
class Reporter:
    """The worker's end. Never waits: a parent that does not listen must not hold up the event loop."""

    channel: socket.socket
    _unsent: bytes = field(default=b"", init=False)

    def report(self, report: Report) -> None:
        """Send a report; numbers are left out while the parent has not taken what was sent before."""
        self._flush()
        if self._unsent and isinstance(report, Numbers):
            return
        self._unsent += _encoder.encode(report) + b"\n"
        self._flush()

    def fail(self, text: str, code: int, traceback: str = "") -> int:
        """Report why this process ends; returns `code`."""
        self.report(Failed(text[-TEXT_MAX:], code, traceback[-TEXT_MAX:]))
        return code

    def _flush(self) -> None:
        # The guard handles a parent that is gone.
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._unsent:
                sent = self.channel.send(self._unsent, socket.MSG_DONTWAIT)
                self._unsent = self._unsent[sent:]


@define(eq=False)
class ReportReader:
    """The parent's end."""

    channel: socket.socket
    ended: bool = field(default=False, init=False)
    _rest: bytes = field(default=b"", init=False)

    def read_nowait(self) -> Iterator[Report]:
        """Whatever has arrived. A worker that was killed in the middle of a line leaves half of it."""
        while not self.ended:
            try:
                data = self.channel.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            self.ended = not data
            self._rest += data
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                report = _decode(line)
                if report is not None:
                    yield report


def _decode(line: bytes) -> Report | None:
    """None for what is not known: a reload may start workers of a newer release than this process has."""
    try:
        return _decoder.decode(line)
    except msgspec.MsgspecError:
        return None
