"""Every setting, its default, its meaning and its check.

A setting is written once: the default, the rule that a value must keep and the paragraph for the docs
stand beside each other in `Config`, so that `docs/configuration.md`, the environment variables and the
overrides per kind all come from the same place. A wrong value is refused when the `Config` is built,
with a text that names the field, what it got and what it accepts.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

import attrs
from attrs import frozen

from atomic_actors.base._errors import InvalidConfig
from atomic_actors.base._settings import FrozenMapping, parse_setting
from atomic_actors.base._settings import Rule as _Rule
from atomic_actors.base._settings import choice as _choice
from atomic_actors.base._settings import count as _count
from atomic_actors.base._settings import flag as _flag
from atomic_actors.base._settings import name as _name
from atomic_actors.base._settings import seconds as _seconds
from atomic_actors.base._settings import setting as _setting
from atomic_actors.base._settings import text as _text
from atomic_actors.base._store_url import (
    URL_FORMS,
    StoreLocation,
    StoreScheme,
    parse_store_url,
    url_for_display,
)

__all__ = (
    "Config",
    "KindConfig",
    "KindSettings",
    "environment_variable",
    "settings_for",
)

_DEFAULT_URL: Final = "embedded:"


def _accept_actors(value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise InvalidConfig(
            f"actors: expected a list, got {type(value).__name__} {value!r}; write actors=[...]"
        )
    return tuple(cast("tuple[Any, ...]", value))


def _accept_kinds(value: object) -> Mapping[str, KindConfig]:
    if not isinstance(value, Mapping):
        raise InvalidConfig(f"kinds: expected a mapping, got {type(value).__name__} {value!r}")
    by_kind = dict(cast("dict[Any, Any]", value))
    for kind, override in by_kind.items():
        if not isinstance(kind, str) or not kind:
            raise InvalidConfig(f"kinds: expected the name of a kind as key, got {kind!r}")
        if not isinstance(override, KindConfig):
            raise InvalidConfig(
                f"kinds[{kind!r}]: expected a KindConfig, got {type(override).__name__} {override!r}; "
                f"write kinds={{{kind!r}: KindConfig(...)}}"
            )
    return FrozenMapping(by_kind)


def _repr_url(url: str) -> str:
    return repr(url_for_display(url))


@frozen(kw_only=True)
class Config:
    """All settings of one actor system. Frozen; `attrs.evolve(config, field=...)` makes a changed copy.

    Every field has a default, which `docs/configuration.md` lists with its meaning. Times are in
    seconds. Whole numbers are accepted where a float is expected; `True` is not a number.

    Raises:
        InvalidConfig: a value, or two values together, cannot work. The text names the field and
            the remedy.
    """

    # Where the store is.
    url: str = _text(
        _DEFAULT_URL,
        f"Where the store is. One of the forms {URL_FORMS}. The default is a private server on a Unix socket "
        "with its data in `.atomic-actors/`.",
        secret=True,
        repr=_repr_url,
    )
    host: str | None = _text(None, "The store's host, as an alternative to naming it in the URL.")
    port: int | None = _setting(
        None, "The store's port.", _Rule(kind="whole", minimum=1, maximum=65535, optional=True, unit="port")
    )
    db: int | None = _setting(
        None, "The number of the database in the store.", _Rule(kind="whole", maximum=65535, optional=True)
    )
    username: str | None = _text(None, "The user name for the store.")
    password: str | None = _text(
        None, "The password for the store; it is never shown.", secret=True, repr=False
    )
    server_binary: str | None = _text(
        None, "Path of the server program for `embedded:`; by default the one that is found."
    )
    namespace: str = _name("Keeps applications that share one store apart: it begins every key.")
    service: str = _name("The set of kinds that this system offers; its nodes share entities.")

    # What runs here.
    actors: Sequence[Any] = _setting(
        (),
        "Actor classes, `EntityKind`s, or modules to scan.",
        _Rule(kind="actors"),
        accept=_accept_actors,
        hash=False,
    )
    kinds: Mapping[str, KindConfig] = _setting(
        FrozenMapping({}),
        "Overrides per kind; they take precedence over the class's own options.",
        _Rule(kind="kinds"),
        accept=_accept_kinds,
        hash=False,
    )
    partitions: int = _setting(
        64,
        "How many partitions a service's entities hash into. Fixed when the service first appears in a store; "
        "a different number later is rejected.",
        _Rule(kind="whole", minimum=1, maximum=16384, unit="partitions"),
    )

    # Activations and depth.
    idle_timeout_s: float = _seconds(
        30.0, "An activation that had no message this long is passivated.", zero="never"
    )
    max_activations: int = _count(
        10_000, "activations", "How many entities may be active on one node at once.", zero="unbounded"
    )
    max_total_depth: int = _count(
        100_000, "messages", "How many may wait in all, as an equal quota per partition.", zero="unbounded"
    )
    max_depth: int = _count(0, "messages", "How many messages may wait for one entity.", zero="unbounded")

    # Sending.
    ask_timeout_s: float = _seconds(
        5.0, "How long `ask` waits for a reply unless the call gives another timeout. It is also the message's deadline: "
        "a message that has not begun by then does not run.", zero="unbounded",
    )  # fmt: skip
    accept_timeout_s: float = _seconds(
        5.0, "How long `tell` keeps sending the same message id until it raises `AcceptanceUnknown`."
    )
    max_hops: int = _count(3, "asks", "How long a chain of asks inside turns may grow.", zero="unbounded")
    max_inflight_asks: int = _count(
        10_000, "asks", "How many asks of one node may wait for their replies at once.", zero="unbounded"
    )
    max_payload_bytes: int = _count(
        1_048_576, "bytes", "The largest message, reply or state, as encoded.", zero="unbounded"
    )
    max_outbox_messages: int = _count(
        1_000, "messages", "How many messages one turn may put in its outbox.", zero="unbounded"
    )

    # Turns that fail or are cut off.
    max_attempts: int = _count(
        1, "attempts", "How often a message whose handler raises is run in all.", zero="unbounded"
    )
    backoff: Literal["exponential", "fixed"] = _choice(
        "exponential",
        ("exponential", "fixed"),
        "Whether the wait before each further attempt doubles or stays.",
    )
    backoff_initial_s: float = _seconds(1.0, "The wait before the second attempt.", zero="at once")
    backoff_max_s: float = _seconds(30.0, "The longest wait between two attempts.", zero="at once")
    backoff_jitter: float = _setting(
        0.1,
        "The part of each wait that is random, so that many retries do not come at the same moment.",
        _Rule(kind="number", maximum=1, unit="ratio"),
    )
    max_interruptions: int = _count(
        3,
        "interruptions",
        "After this many the message becomes a dead letter, whatever `on_interrupted` is.",
        zero="unbounded",
    )
    on_interrupted: Literal["dead_letter", "retry"] = _choice(
        "dead_letter",
        ("dead_letter", "retry"),
        "What becomes of a message whose handler was cut off and is not transactional: a dead letter, or another run "
        "because you know that the handler is safe to repeat.",
    )
    on_dead: Literal["continue", "park"] = _choice(
        "continue",
        ("continue", "park"),
        "Whether an entity continues with its next message after a dead letter, or waits for a person.",
    )
    turn_timeout_s: float = _seconds(
        0.0, "How long one turn may run before it is cancelled.", zero="unbounded"
    )
    drain_timeout_s: float = _seconds(
        30.0,
        "How long running turns may take to end when a system stops or hands a partition over.",
        zero="unbounded",
    )

    # Leases.
    lease_ttl_s: float = _seconds(2.0, "How long a partition's owner keeps it without renewing its lease.")
    lease_renew_interval_s: float = _seconds(0.5, "How often an owner renews its leases.")
    lease_margin_s: float = _seconds(0.5, "How long before the end of its lease an owner stops its handlers.")
    loop_stall_limit_s: float = _seconds(
        1.0, "When the event loop has not answered this long, its leases are no longer renewed and the stacks are logged."
    )  # fmt: skip
    same_host_takeover: bool = _flag(
        True,
        "Whether the partitions of a process of this host that is known to be dead are taken over at once.",
    )

    # How long things are kept.
    result_ttl_s: float = _seconds(60.0, "How long a reply can be fetched with `result`.")
    dedupe_ttl_s: float = _seconds(86_400.0, "How long the use of an idempotency key is remembered.")
    dead_letter_ttl_s: float = _seconds(0.0, "How long dead letters are kept.", zero="they never expire")
    max_dead_letters: int = _count(
        100_000,
        "letters",
        "Beyond it the next failing entity parks; none is dropped.",
        zero="unbounded",
    )

    # Batches to the store.
    max_batch_steps: int = _count(256, "steps", "How many steps go to the store in one call.")
    max_batch_bytes: int = _count(
        1_048_576, "bytes", "How many bytes go to the store in one call; a larger step goes alone."
    )
    max_pending_steps: int = _count(
        100_000, "steps", "How many steps may wait on one node for the store before senders are held back."
    )
    max_run_length: int = _count(
        32, "messages", "How many transactional messages of one entity are taken and committed at once."
    )

    # The store.
    store_timeout_s: float = _seconds(1.5, "How long one call to the store may take.")
    store_ping_interval_s: float = _seconds(0.5, "How often an idle store is pinged.")
    store_failure_threshold: int = _count(
        3,
        "calls",
        "After this many failed calls in a row the store counts as unavailable and nothing is sent.",
    )
    replication: Literal["none", "acknowledged", "fsynced"] = _choice(
        "none",
        ("none", "acknowledged", "fsynced"),
        "When an answer of the store counts: at once, when replicas have acknowledged what was written (`WAIT`), or "
        "when they also have it on their disks (`WAITAOF`). Until then the call is sent again, and no result is "
        "reported.",
    )
    replicas_min: int = _count(
        1, "replicas", "How many replicas must have acknowledged, where `replication` is not `none`."
    )
    replication_timeout_s: float = _seconds(
        0.5, "How long one call waits for the replicas before it is sent again."
    )
    allow_eviction: bool = _flag(
        False,
        "Accept a store that may evict keys when its memory is full. Accepted messages can then be lost.",
    )
    allow_no_persistence: bool = _flag(
        False,
        "Accept a store without an append-only file (or with `appendfsync no`). It then loses accepted messages.",
    )

    # The process.
    node_weight: float = _setting(
        1.0,
        "The share of the partitions that this node takes, relative to the other nodes of the service.",
        _Rule(kind="number", above=True, maximum=1_000, unit="ratio"),
    )
    handle_signals: bool = _flag(
        False, "Whether the system stops in good order on SIGTERM and SIGINT by itself."
    )
    tick_interval_s: float = _seconds(
        0.02, "How often the sweeper looks for ask timeouts, idle activations and due retries."
    )

    def __attrs_post_init__(self) -> None:
        _check_backoff(self.backoff_initial_s, self.backoff_max_s, "")
        _check_times(self)
        _check_replication(self)

    @property
    def location(self) -> StoreLocation:
        """Where the store is: `url` together with `host`, `port`, `db`, `username` and `password`."""
        return _locate(self)

    @classmethod
    def from_env(
        cls, prefix: str = "ATOMIC_ACTORS_", environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> Config:
        """Build a `Config` from environment variables such as `ATOMIC_ACTORS_LEASE_TTL_S=3`.

        A variable that is set to nothing counts as not set.

        Args:
            prefix: what every variable begins with.
            environ: where to look; by default `os.environ`.
            **overrides: fields that win over their variable, such as `actors=[...]`.

        Raises:
            InvalidConfig: a variable with the prefix is not a setting, or its text cannot be read.
        """
        values: dict[str, Any] = {}
        by_variable = {environment_variable(a.name, prefix): a for a in attrs.fields(cls)}
        for variable, text in (os.environ if environ is None else environ).items():
            if not variable.startswith(prefix):
                continue
            attribute = by_variable.get(variable)
            if attribute is None:
                close = difflib.get_close_matches(variable[len(prefix) :].lower(), Config.__annotations__, 1)
                hint = f"; did you mean {environment_variable(close[0], prefix)}?" if close else ""
                raise InvalidConfig(f"{variable}: there is no such setting{hint}")
            if text and attribute.name not in overrides:
                values[attribute.name] = parse_setting(variable, text, attribute.metadata["rule"])
        return cls(**{**values, **overrides})


def environment_variable(name: str, prefix: str = "ATOMIC_ACTORS_") -> str:
    """The environment variable of a setting."""
    return prefix + name.upper()


def _check_backoff(initial_s: float, maximum_s: float, where: str) -> None:
    if initial_s > maximum_s:
        raise InvalidConfig(
            f"{where}backoff_initial_s: {initial_s:g} is more than backoff_max_s, which is {maximum_s:g}; "
            f"raise backoff_max_s or lower backoff_initial_s"
        )


def _check_times(config: Config) -> None:
    ttl, margin, result = config.lease_ttl_s, config.lease_margin_s, config.result_ttl_s
    renew, stall, call = config.lease_renew_interval_s, config.loop_stall_limit_s, config.store_timeout_s
    accept, dedupe = config.accept_timeout_s, config.dedupe_ttl_s
    for broken, text in (
        (
            margin >= ttl,
            f"lease_margin_s: {margin:g} leaves nothing of lease_ttl_s, which is {ttl:g}; use about a quarter of it",
        ),
        (
            2 * renew >= ttl - margin,
            f"lease_renew_interval_s: {renew:g} leaves no time for a second try within lease_ttl_s - "
            f"lease_margin_s, which is {ttl - margin:g}; use less than {(ttl - margin) / 2:g}",
        ),
        (
            stall >= ttl,
            f"loop_stall_limit_s: {stall:g} must be less than lease_ttl_s, which is {ttl:g}; use about half of it",
        ),
        (
            call >= ttl,
            f"store_timeout_s: {call:g} must be less than lease_ttl_s, which is {ttl:g}, or one slow call costs "
            f"the lease; lower store_timeout_s or raise lease_ttl_s",
        ),
        (
            accept > result / 2,
            f"accept_timeout_s: {accept:g} is more than half of result_ttl_s, which is {result:g}; the store "
            f"refuses older message ids, so raise result_ttl_s",
        ),
        (
            dedupe < result,
            f"dedupe_ttl_s: {dedupe:g} is less than result_ttl_s, which is {result:g}; raise dedupe_ttl_s",
        ),
    ):
        if broken:
            raise InvalidConfig(text)


def _check_replication(config: Config) -> None:
    location = config.location
    if config.replication == "none":
        return
    if location.scheme in (StoreScheme.EMBEDDED, StoreScheme.MEMORY):
        raise InvalidConfig(
            f"replication: {config.replication!r} has no effect with url={_repr_url(config.url)}, which has no replicas"
        )
    wait, call = config.replication_timeout_s, config.store_timeout_s
    if wait > call:
        raise InvalidConfig(
            f"replication_timeout_s: {wait:g} is more than store_timeout_s, which is {call:g}; lower it or "
            f"raise store_timeout_s"
        )


# Per kind.


def _override(name: str) -> Any:
    metadata = getattr(attrs.fields(Config), name).metadata
    return _setting(None, metadata["doc"], attrs.evolve(metadata["rule"], optional=True))


@frozen(kw_only=True)
class KindConfig:
    """What is different for one kind. `None` leaves a setting as the class or the `Config` has it.

    The fields mean what the `Config` fields of the same name mean.

    Raises:
        InvalidConfig: a value cannot work.
    """

    idle_timeout_s: float | None = _override("idle_timeout_s")
    max_depth: int | None = _override("max_depth")
    max_attempts: int | None = _override("max_attempts")
    backoff: Literal["exponential", "fixed"] | None = _override("backoff")
    backoff_initial_s: float | None = _override("backoff_initial_s")
    backoff_max_s: float | None = _override("backoff_max_s")
    backoff_jitter: float | None = _override("backoff_jitter")
    max_interruptions: int | None = _override("max_interruptions")
    on_interrupted: Literal["dead_letter", "retry"] | None = _override("on_interrupted")
    on_dead: Literal["continue", "park"] | None = _override("on_dead")
    turn_timeout_s: float | None = _override("turn_timeout_s")
    max_run_length: int | None = _override("max_run_length")


@frozen(kw_only=True)
class KindSettings:
    """The settings that hold for one kind, with nothing left open."""

    kind: str
    idle_timeout_s: float
    max_depth: int
    max_attempts: int
    backoff: Literal["exponential", "fixed"]
    backoff_initial_s: float
    backoff_max_s: float
    backoff_jitter: float
    max_interruptions: int
    on_interrupted: Literal["dead_letter", "retry"]
    on_dead: Literal["continue", "park"]
    turn_timeout_s: float
    max_run_length: int


def settings_for(config: Config, kind: str, class_overrides: KindConfig | None = None) -> KindSettings:
    """What holds for `kind`: `config.kinds[kind]` wins over the class, which wins over `config` itself.

    Args:
        config: the system's settings.
        kind: the name of the kind.
        class_overrides: what the actor class or `EntityKind` says.

    Raises:
        InvalidConfig: the values do not fit together.
    """
    values: dict[str, Any] = {}
    for attribute in attrs.fields(KindConfig):
        for source in (config.kinds.get(kind), class_overrides, config):
            value = getattr(source, attribute.name, None)
            if value is not None:
                values[attribute.name] = value
                break
    settings = KindSettings(kind=kind, **values)
    _check_backoff(settings.backoff_initial_s, settings.backoff_max_s, f"kind {kind!r}: ")
    return settings


def _locate(config: Config) -> StoreLocation:
    url = config.url
    if url == _DEFAULT_URL and (config.host is not None or config.port is not None):
        url = (
            f"redis://{config.host or 'localhost'}"
            if ":" not in (config.host or "")
            else f"redis://[{config.host}]"
        )
        location, in_url = parse_store_url(url)[0], frozenset[str]()
    else:
        location, in_url = parse_store_url(url)
    beside = f"url={_repr_url(url)}"
    changes: dict[str, Any] = {}
    for name in ("host", "port", "db", "username", "password"):
        value = getattr(config, name)
        if value is None:
            continue
        shown = "it" if name == "password" else repr(value)
        if location.scheme in (StoreScheme.EMBEDDED, StoreScheme.MEMORY):
            raise InvalidConfig(f"{name}: {shown} has no effect with {beside}; give host, or another url")
        if name == "db" and value and location.scheme is StoreScheme.CLUSTER:
            raise InvalidConfig(f"db: {value} has no effect with {beside}; a cluster has only database 0")
        if name in in_url or (name in ("host", "port") and len(location.hosts) != 1):
            raise InvalidConfig(f"{name}: {shown} conflicts with {beside}; set the {name} in one place")
        if name == "port":
            changes["hosts"] = ((location.host, value),)
        elif name != "host":
            changes[name] = value
    return attrs.evolve(location, **changes)
