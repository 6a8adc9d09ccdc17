"""Which part of a node gets which frame."""

from __future__ import annotations

from typing import Any, cast, get_args

import pytest

from atomic_actors.codec._frames import (
    AskFrame,
    ClaimFrame,
    ForgetFrame,
    Frame,
    ReplyFrame,
    ReportFrame,
    TellFrame,
)
from atomic_actors.node._inbox import NodeInbox


class Part:
    """Records how it is called."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        self._name = name
        self._calls = calls

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments: self._calls.append((f"{self._name}.{method}", *arguments))


MESSAGE: dict[str, Any] = {
    "partition": 0,
    "claim": "c",
    "entity_key": "ear/e",
    "name": "Hear",
    "payload": b"",
    "sender": "n",
    "stream": 1,
    "number": 1,
}
FRAMES: list[tuple[str, Frame]] = [
    ("replies.pushed", ReplyFrame("a/b", "0", b"completed\n")),
    ("host.on_ask", AskFrame(**MESSAGE, left_ms=0, path=())),
    ("host.on_tell", TellFrame(**MESSAGE)),
    ("host.on_forget", ForgetFrame("n", 1, 1)),
    ("routes.on_report", ReportFrame(1, 1, "moved", None)),
]


def inbox(calls: list[Any]) -> NodeInbox:
    return NodeInbox(
        *(cast("Any", Part(name, calls)) for name in ("replies", "membership", "host", "routes"))
    )


@pytest.mark.parametrize(("handler", "frame"), FRAMES, ids=lambda value: type(value).__name__)
def test_frames_find_their_handlers(handler: str, frame: Frame) -> None:
    calls: list[Any] = []
    inbox(calls).receive(frame)
    assert calls == [(handler, frame)]


@pytest.mark.parametrize("partition", [7, -1])
def test_a_claim_frame_makes_the_node_look(partition: int) -> None:
    calls: list[Any] = []
    inbox(calls).receive(ClaimFrame(partition))
    assert calls == [("membership.refresh_soon",)]


def test_every_frame_has_a_handler() -> None:
    assert {type(frame) for _, frame in FRAMES} | {ClaimFrame} == set(get_args(Frame))


def test_an_open_channel_lets_volatile_messages_out() -> None:
    calls: list[Any] = []
    inbox(calls).channel_opened()
    assert calls == [("routes.heard",)]
