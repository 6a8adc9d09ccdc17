"""A kind, bound: its spec, its settings, and the functions that turn its messages into bytes and back.

Made once for each kind when a system starts, so that a turn looks nothing up but its handler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import define, field, frozen

from atomic_actors._actor import ActorSpec, HandlerSpec, collect
from atomic_actors._codec import Codec
from atomic_actors._config import Config, KindConfig, KindSettings, settings_for
from atomic_actors._declarations import KindSettings as DeclaredSettings
from atomic_actors._errors import InvalidState

__all__ = ("BoundHandler", "Kind", "bind_kinds")

_POLICY_WORDS: Final = ("dead_letter", "retry")


@frozen(eq=False)
class BoundHandler:
    """A handler with its codecs."""

    spec: HandlerSpec
    decode_payload: Callable[[bytes], Any]
    encode_payload: Callable[[Any], bytes]
    encode_reply: Callable[[Any], bytes]
    decode_reply: Callable[[bytes], Any]
    #: 0 means unbounded.
    max_attempts: int


@define(eq=False)
class Kind:
    """A kind, ready to run."""

    name: str
    spec: ActorSpec
    settings: KindSettings
    #: What takes carry: one stamp for each handler.
    policy: str
    by_type: dict[type[Any], BoundHandler]
    by_name: dict[str, BoundHandler]
    fallback: BoundHandler | None
    encode_state: Callable[[Any], bytes] | None
    decode_state: Callable[[bytes], Any] | None
    durable: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.durable = self.spec.durable

    def handler_for(self, name: str) -> BoundHandler | None:
        """The handler of a wire name: its own, else the fallback, else None."""
        return self.by_name.get(name, self.fallback)

    def new_state(self) -> Any:
        """A fresh state, or None for a kind without."""
        return None if self.spec.state_type is None else self.spec.state_type()


def bind_kinds(config: Config, codec: Codec) -> dict[str, Kind]:
    """Everything `config.actors` lists, by kind.

    Raises:
        UsageError: an actor, a handler, a message, a state or a setting cannot work.
    """
    return {name: _bind(config, codec, spec) for name, spec in collect(config.actors).items()}


def _bind(config: Config, codec: Codec, spec: ActorSpec) -> Kind:
    said = spec.settings
    word = said.on_interrupted if said.on_interrupted in _POLICY_WORDS else None
    overrides = KindConfig(
        idle_timeout_s=said.idle_timeout_s,
        max_depth=said.depth_limit,
        max_attempts=said.max_attempts,
        max_interruptions=said.max_interruptions,
        on_interrupted=word,  # type: ignore[arg-type]  # checked against the words above
        on_dead=said.on_dead,
    )
    settings = settings_for(config, spec.kind, overrides)
    if word is not None or said.on_interrupted is None:
        spec = spec.with_settings(DeclaredSettings(on_interrupted=settings.on_interrupted))
    if spec.state_type is not None:
        _check_state(codec, spec)

    def bind(handler: HandlerSpec) -> BoundHandler:
        return BoundHandler(
            spec=handler,
            decode_payload=codec.decoder(handler.payload_type),
            encode_payload=codec.encoder(handler.payload_type),
            encode_reply=codec.encoder(handler.reply_type),
            decode_reply=codec.decoder(handler.reply_type),
            max_attempts=settings.max_attempts if handler.max_attempts is None else handler.max_attempts,
        )

    by_name = {name: bind(handler) for name, handler in spec.handlers.items()}
    return Kind(
        name=spec.kind,
        spec=spec,
        settings=settings,
        policy=spec.policy(settings.max_interruptions, park_on_dead=settings.on_dead == "park"),
        by_type={cls: by_name[handler.name] for cls, handler in spec.by_type.items()},
        by_name=by_name,
        fallback=None if spec.fallback is None else bind(spec.fallback),
        encode_state=None if spec.state_type is None else codec.encoder(spec.state_type),
        decode_state=None if spec.state_type is None else codec.decoder(spec.state_type),
    )


def _check_state(codec: Codec, spec: ActorSpec) -> None:
    try:
        codec.check_round_trip(spec.state_type)
    except InvalidState as error:
        raise InvalidState(f"{spec.location}: {error}") from error




