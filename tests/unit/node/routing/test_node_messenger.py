"""The messenger between nodes, over channels that only remember."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import pytest

from atomic_actors.codec._envelope import encode_plain
from atomic_actors.codec._frames import ClaimFrame, Frame, ReplyFrame, ReportFrame, encode_frame
from atomic_actors.journal.redis._channels import OnSent
from atomic_actors.node.routing._node_messenger import NodeMessenger

pytestmark = pytest.mark.anyio

REPLY = ReplyFrame("account/a", "0" * 32, b"completed\n\x05")


class Channels:
    def __init__(self) -> None:
        self.watched: list[int] = []
        self.unwatched: list[int] = []
        self.published: list[tuple[bytes, bytes, OnSent | None]] = []
        self.has_ended = False
        self.on_bell: Callable[[int, str], None] = lambda partition, entity: None
        self.on_payload: Callable[[bytes], None] = lambda payload: None
        self.on_heard: Callable[[bool], None] = lambda is_heard: None

    def watch(self, partition: int) -> None:
        self.watched.append(partition)

    def unwatch(self, partition: int) -> None:
        self.unwatched.append(partition)

    async def listen_doorbells(self, partitions: Iterable[int], callback: Callable[[int, str], None]) -> None:
        assert not list(partitions)
        self.on_bell = callback

    def reply_channel(self, node: str) -> bytes:
        return b"to " + node.encode()

    async def listen_replies(
        self, node: str, callback: Callable[[bytes], None], on_heard: Callable[[bool], None] | None = None
    ) -> None:
        assert on_heard is not None
        self.on_payload, self.on_heard = callback, on_heard

    async def end_replies(self) -> None:
        self.has_ended = True

    def publish(self, channel: bytes, payload: bytes, on_sent: OnSent | None = None) -> None:
        self.published.append((channel, payload, on_sent))


class Receiver:
    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.opened = 0
        self.error: Exception | None = None

    def receive(self, frame: Frame) -> None:
        if self.error is not None:
            raise self.error
        self.frames.append(frame)

    def channel_opened(self) -> None:
        self.opened += 1


@pytest.fixture
def channels() -> Channels:
    return Channels()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def messenger(channels: Channels, receiver: Receiver) -> NodeMessenger:
    messenger = NodeMessenger(channels)
    await messenger.listen("me", receiver)
    return messenger


async def test_frames_of_others_are_received(
    messenger: NodeMessenger, channels: Channels, receiver: Receiver
) -> None:
    frames: list[Frame] = [REPLY, ClaimFrame(3), ReportFrame(7, 1, "moved", None)]
    for frame in frames:
        channels.on_payload(encode_frame(frame))
    assert receiver.frames == frames


async def test_frames_go_to_the_channel_of_a_node(messenger: NodeMessenger, channels: Channels) -> None:
    heard: list[int | None] = []
    messenger.push("other", REPLY, heard.append)
    messenger.push("another", ClaimFrame(-1))
    (channel, payload, on_sent), second = channels.published
    assert (channel, payload) == (b"to other", encode_frame(REPLY))
    assert on_sent is not None
    on_sent(2)
    assert heard == [2]
    assert second == (b"to another", encode_frame(ClaimFrame(-1)), None)


async def test_a_frame_for_this_node_takes_no_detour(
    messenger: NodeMessenger, channels: Channels, receiver: Receiver
) -> None:
    heard: list[int | None] = []
    messenger.push("me", REPLY, heard.append)
    assert (receiver.frames, heard, channels.published) == ([REPLY], [1], [])


@pytest.mark.parametrize("commits_publish", [True, False])
async def test_what_a_commit_publishes(channels: Channels, *, commits_publish: bool) -> None:
    packed = NodeMessenger(channels, commits_publish=commits_publish).packed(
        "other", REPLY.entity_key, REPLY.uid, REPLY.outcome
    )
    assert packed == ((b"to other", encode_frame(REPLY)) if commits_publish else None)


async def test_whether_the_channel_is_heard(
    messenger: NodeMessenger, channels: Channels, receiver: Receiver
) -> None:
    assert not messenger.is_heard
    for is_heard, opened in ((True, 1), (False, 1), (True, 2)):
        channels.on_heard(is_heard)
        assert (messenger.is_heard, receiver.opened) == (is_heard, opened)


async def test_unknown_frames_are_logged_once(
    messenger: NodeMessenger, channels: Channels, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    for tag in ("newer", "newest", "newer", "newer"):
        channels.on_payload(encode_plain([tag, 1, {"a": [2]}]))
    assert [record.getMessage() for record in caplog.records] == [
        f"frames {tag!r} of other nodes are not known here and are dropped" for tag in ("newer", "newest")
    ]
    channels.on_payload(encode_frame(REPLY))
    assert receiver.frames == [REPLY]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\x91" * 100_000 + b"\xc0",
        encode_plain({"claim": 1}),
        encode_plain([]),
        encode_plain(["claim"]),
        encode_plain(["claim", "1"]),
        encode_plain(["reply", "account/a", "0" * 32, "no bytes"]),
        encode_plain(["ask", 0, "c", "ear/e", "Hear", b"", "n", 1, 1, -5, []]),
        encode_plain(["ask", 0, "c", "ear/e", "Hear", b"", "n", 1, 1, 5, [7]]),
    ],
    ids=lambda payload: repr(payload[:12]),
)
async def test_damaged_frames_are_logged_and_dropped(
    messenger: NodeMessenger,
    channels: Channels,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    payload: bytes,
) -> None:
    channels.on_payload(payload)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot be decoded and is dropped" in record.getMessage()
    channels.on_payload(encode_frame(REPLY))
    assert receiver.frames == [REPLY]


async def test_a_frame_that_cannot_be_handled_ends_nothing(
    messenger: NodeMessenger, channels: Channels, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.error = KeyError("surprise")
    channels.on_payload(encode_frame(REPLY))
    messenger.push("me", ClaimFrame(1))
    assert [record.getMessage() for record in caplog.records] == [
        "a ReplyFrame of another node could not be handled",
        "a ClaimFrame of another node could not be handled",
    ]
    receiver.error = None
    channels.on_payload(encode_frame(REPLY))
    assert receiver.frames == [REPLY]


async def test_doorbells_of_partitions_that_are_not_owned_any_more(channels: Channels) -> None:
    messenger, owned = NodeMessenger(channels), {1, 2}
    rung: list[tuple[int, str]] = []
    for partition in owned:
        messenger.watch(partition)
    await messenger.listen_bells(lambda *bell: rung.append(bell), owned.__contains__)
    owned.remove(2)
    channels.on_bell(1, "account/a")
    channels.on_bell(2, "account/b")
    channels.on_bell(1, "")
    assert (rung, channels.watched, channels.unwatched) == ([(1, "account/a"), (1, "")], [1, 2], [2])


async def test_leaving(messenger: NodeMessenger, channels: Channels) -> None:
    await messenger.leave()
    assert channels.has_ended
