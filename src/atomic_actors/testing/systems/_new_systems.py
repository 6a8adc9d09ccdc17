"""What the fixtures of the pytest plugin give to a test: it makes systems over one store."""

from __future__ import annotations

import secrets
from typing import Any, Final

import attrs
from attrs import define, field

from atomic_actors._system import ActorSystem
from atomic_actors.actors._specs import ActorLike
from atomic_actors.base._config import Config
from atomic_actors.base._errors import InvalidConfig
from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.memory._journal import MemoryJournal

__all__ = ("TEST_SETTINGS", "NewActorSystem")

#: Short waits wherever a default is made for production; a test that says otherwise gets what it says.
TEST_SETTINGS: Final[dict[str, Any]] = {
    "partitions": 4,
    "tick_interval_s": 0.005,
    "backoff_initial_s": 0.02,
    "backoff_max_s": 0.05,
    "backoff_jitter": 0.0,
    "drain_timeout_s": 1.0,
}
_THE_STORE: Final[dict[str, Any]] = {
    "host": None,
    "port": None,
    "db": None,
    "username": None,
    "password": None,
    "server_binary": None,
    "replication": "none",
}


def _random_namespace() -> str:
    return f"test-{secrets.token_hex(6)}"


@define(eq=False)
class NewActorSystem:
    """Makes the systems of one test: `async with actor_system(Account) as system:`.

    All of them have the same store, empty when the test begins: what one system leaves behind, the next one
    finds, and two at once are two nodes of a service. In memory, only systems of the same service meet.

    Args:
        url: where the store is.
        namespace: what begins every key there.
    """

    url: str = "memory:"
    namespace: str = field(factory=_random_namespace)
    _journals: dict[tuple[str, str], tuple[JournalSettings, MemoryJournal]] = field(
        factory=dict[tuple[str, str], tuple[JournalSettings, MemoryJournal]], init=False, repr=False
    )

    def __call__(self, *actors: ActorLike, config: Config | None = None, **settings: Any) -> ActorSystem:
        """Make a system; enter it with `async with`.

        Args:
            actors: actor classes, `EntityKind`s or modules, as in `Config(actors=[...])`.
            config: your application's settings, which then hold but for the store; `TEST_SETTINGS` over the
                defaults where left out.
            settings: fields of `Config`; they win over both.

        Raises:
            UsageError: an actor or a setting cannot work.
        """
        made = self.config(*actors, config=config, **settings)
        if self.url != "memory:":
            return ActorSystem(made)
        return ActorSystem(made, journal=self._journal(made))

    def config(self, *actors: ActorLike, config: Config | None = None, **settings: Any) -> Config:
        """The settings of such a system, for those who start it another way: a process, a `Client`.

        Raises:
            InvalidConfig: a setting cannot work, or names the store, which is the fixture's.
        """
        taken = sorted({"url", *_THE_STORE} & settings.keys() - {"replication"})
        if taken:
            raise InvalidConfig(
                f"{taken[0]}: the fixture sets the store; create an ActorSystem yourself to use another one"
            )
        fields: dict[str, Any] = {"namespace": self.namespace, **settings}
        if config is None:
            return Config(url=self.url, actors=list(actors), **{**TEST_SETTINGS, **fields})
        fields.setdefault("actors", [*config.actors, *actors])
        return attrs.evolve(config, url=self.url, **{**_THE_STORE, **fields})

    def _journal(self, config: Config) -> MemoryJournal:
        wanted = journal_settings(config)
        key = (wanted.namespace, wanted.service)
        if key not in self._journals:
            self._journals[key] = (wanted, MemoryJournal(wanted))
        settings, journal = self._journals[key]
        if settings != wanted:
            raise InvalidConfig(
                f"the systems of one test share the store, which was made with {settings}; this one needs {wanted}"
            )
        return journal
