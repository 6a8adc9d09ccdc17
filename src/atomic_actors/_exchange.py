"""Doorbells and frames between the processes that share a store.

All of it is hints: a lost doorbell costs a sweep of the owner, a lost reply a look into the store by the asker,
a lost word that a partition is free the time until the next look.

A frame is a list whose first item says what it is:

    reply   entity, unique, outcome     a message that this node asked for has ended
    claim   partition                   a partition may be claimed; -1: look what has changed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from atomic_actors._envelope import encode_plain, plain_of
from atomic_actors._telemetry import logger
from atomic_actors.journal._channels import RedisChannels

__all__ = ("Exchange",)


class Exchange:
    """What this process and the others tell each other (`Remote`)."""

    def __init__(self, channels: RedisChannels, partitions: int) -> None:
        self._channels = channels
        self._partitions = partitions

    def push(self, node_id: str, entity: str, unique: str, outcome: bytes) -> None:
        """Queue an answer for a node."""
        self.send(node_id, ["reply", entity, unique, outcome])

    def send(self, node_id: str, frame: list[Any]) -> None:
        """Queue a frame for a node."""
        self._channels.publish(self._channels.reply_channel(node_id), encode_plain(frame))

    async def listen_bells(self, on_bell: Callable[[int, str], None]) -> None:
        """Call `on_bell(partition, entity)` until cancelled; an empty entity means: sweep."""
        await self._channels.listen_doorbells(range(self._partitions), on_bell)

    async def listen(self, node_id: str, handlers: Mapping[str, Callable[..., object]]) -> None:
        """Call the handler of each frame that comes for this node with the frame's items, until cancelled."""

        def on_payload(payload: bytes) -> None:
            try:
                what, *items = plain_of(payload)
                handler = handlers.get(what)
                if handler is None:
                    logger.info("a frame %r from another node is not known here", what)
                else:
                    handler(*items)
            except (ValueError, TypeError) as error:
                logger.warning("a frame from another node does not decode: %s", error)

        await self._channels.listen_replies(node_id, on_payload)
