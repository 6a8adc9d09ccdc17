"""A kind, bound: its spec and the coders that turn its messages into bytes and back.

Made once for each kind when a system starts, so that a turn looks nothing up but its handler.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen

from atomic_actors.actors._specs import ActorSpec, HandlerSpec, collect
from atomic_actors.base._config import Config, KindSettings
from atomic_actors.base._errors import InvalidConfig, InvalidState
from atomic_actors.codec._codec import Codec, Coder

__all__ = ("BoundHandler", "BoundKind", "bind_kinds")


@frozen(eq=False)
class BoundHandler:
    """A handler with the coders of its message and its reply."""

    spec: HandlerSpec
    payload_coder: Coder
    reply_coder: Coder


@define(eq=False, kw_only=True)
class BoundKind:
    """A kind, ready to run."""

    name: str
    spec: ActorSpec
    by_type: dict[type[Any], BoundHandler]
    by_name: dict[str, BoundHandler]
    fallback: BoundHandler | None
    #: None for a kind without state.
    state_coder: Coder | None
    settings: KindSettings = field(init=False)
    durable: bool = field(init=False)
    #: Handlers are free functions: they take the context, and there is no instance.
    free: bool = field(init=False)
    #: What takes carry: one stamp for each handler.
    policy: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.settings = self.spec.settings
        self.durable = self.spec.durable
        handlers = [*self.by_name.values(), *([self.fallback] if self.fallback is not None else [])]
        self.free = any(handler.spec.free for handler in handlers)
        self.policy = self.spec.policy()

    def handler_for(self, name: str) -> BoundHandler | None:
        """The handler of a wire name: its own, else the fallback, else None."""
        return self.by_name.get(name, self.fallback)

    def new_state(self) -> Any:
        """A fresh state, or None for a kind without."""
        return None if self.spec.state_type is None else self.spec.state_type()


def bind_kinds(config: Config, codec: Codec) -> dict[str, BoundKind]:
    """Everything `config.actors` lists, by kind.

    Raises:
        UsageError: an actor, a handler, a message, a state or a setting cannot work.
    """
    specs = collect(config.actors, config)
    unknown = [kind for kind in config.kinds if kind not in specs]
    if specs and unknown:
        raise InvalidConfig(
            f"kinds: {', '.join(map(repr, unknown))} has settings but no actor; the kinds of the actors are "
            f"{', '.join(map(repr, sorted(specs)))}"
        )
    return {name: _bind(codec, spec) for name, spec in specs.items()}


def _bind(codec: Codec, spec: ActorSpec) -> BoundKind:
    if spec.state_type is not None:
        try:
            codec.check_round_trip(spec.state_type)
        except InvalidState as error:
            raise InvalidState(f"{spec.location}: {error}") from error

    def bind(handler: HandlerSpec) -> BoundHandler:
        return BoundHandler(
            spec=handler,
            payload_coder=codec.coder(handler.payload_type),
            reply_coder=codec.coder(handler.reply_type),
        )

    by_name = {name: bind(handler) for name, handler in spec.handlers.items()}
    return BoundKind(
        name=spec.kind,
        spec=spec,
        by_type={cls: by_name[handler.name] for cls, handler in spec.by_type.items()},
        by_name=by_name,
        fallback=None if spec.fallback is None else bind(spec.fallback),
        state_coder=None if spec.state_type is None else codec.coder(spec.state_type),
    )
