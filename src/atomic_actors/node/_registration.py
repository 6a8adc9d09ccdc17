"""Registers this node's kinds and their contracts, so that other nodes and services can send to them."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
from attrs import define, field

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._config import Config
from atomic_actors.base._errors import KindConflict
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._codec import Codec
from atomic_actors.contracts._contracts import contract_of
from atomic_actors.journal._kind_registry import KindRegistry
from atomic_actors.journal._protocol import JournalSettings, JournalUnavailable

__all__ = ("KindRegistration",)


@define(eq=False, kw_only=True)
class KindRegistration:
    """Registers kinds at the start, and again when the store has lost history, and with it perhaps the kinds.

    Args:
        registry: where kinds are registered; None where a node is alone.
        settings: those of the node's own journal.
    """

    config: Config
    codec: Codec
    kinds: Mapping[str, BoundKind]
    registry: KindRegistry | None
    settings: JournalSettings
    _lost: anyio.Event = field(factory=anyio.Event, init=False)

    async def register(self) -> None:
        """Register every kind.

        Raises:
            JournalUnavailable: the store gives no answer.
            KindConflict: one of the kinds belongs to another service.
        """
        registry, config = self.registry, self.config
        if registry is None or not self.kinds:
            return
        contracts = {name: contract_of(kind, self.codec, self.settings) for name, kind in self.kinds.items()}
        owners = await registry.register_kinds(config.service, config.partitions, contracts)
        for kind, owner in owners.items():
            if owner != config.service:
                raise KindConflict(
                    f"kind {kind!r} belongs to service {owner!r} of namespace {config.namespace!r}, and this node is "
                    f"of service {config.service!r}; give the kind another name, or set service={owner!r}"
                )

    def lost(self) -> None:
        """The store has lost history: register again, soon."""
        self._lost.set()

    async def run(self) -> None:
        """Register again after each loss, until cancelled."""
        while True:
            await self._lost.wait()
            self._lost = anyio.Event()
            await self._register_again()

    async def _register_again(self) -> None:
        while True:
            try:
                await self.register()
            except JournalUnavailable as error:
                logger.info("the kinds cannot be registered again yet: %s", error)
                await anyio.sleep(self.config.store_ping_interval_s)
            except KindConflict as error:
                logger.error("the store lost history, and another service has a kind since: %s", error)
                return
            else:
                return
