"""The verbs: from `ask(entity, message)` to an append, and from an outcome to a reply.

Everything that can be wrong with a call is found before anything is sent: the kind, the message, its
content and size by `_calls`; the key, the time limits, a cycle of asks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal, cast

import anyio
from attrs import define, field

from atomic_actors._calls import Call, Calls
from atomic_actors._codec import Codec
from atomic_actors._config import Config
from atomic_actors._envelope import digest_of, encode_envelope
from atomic_actors._errors import (
    ActorLimitExceeded,
    AskCycle,
    AskTimeout,
    AtomicActorsError,
    InvalidConfig,
    InvalidMessageId,
    NotSupported,
    OutcomeUnknown,
    StoreUnavailable,
    SystemNotRunning,
    TooManyHops,
    UnknownMessageType,
)
from atomic_actors._kinds import Kind
from atomic_actors._messages import Message
from atomic_actors._records import EntityRef, Receipt, check_key, partition_of, split_message_id
from atomic_actors._router import Admission, Pending, Router
from atomic_actors._supervisor import Supervisor
from atomic_actors._telemetry import LifecycleEvent, Listeners, logger
from atomic_actors._turn import TurnContext, current_activation
from atomic_actors._volatile import VolatileKinds
from atomic_actors.journal._group_commit import GroupCommit
from atomic_actors.journal._protocol import Append, Appended, pack_body

__all__ = ("Sender",)

#: Appends of one `tell_many` that may be under way at once.
TELL_MANY_WINDOW: Final = 2_000

OnCancel = Literal["withdraw", "detach"]


@define(eq=False)
class Sender:
    """Implements the verbs of `ActorSystem`.

    Args:
        config: time limits and sizes.
        supervisor: gives the activations that take messages as they are appended.
        volatile: runs the kinds that have no journal.
        calls: checks what is sent, and finds out where it goes.
    """

    config: Config
    codec: Codec
    router: Router
    supervisor: Supervisor
    volatile: VolatileKinds
    listeners: Listeners
    kinds: dict[str, Kind]
    partitions: int
    calls: Calls
    running: bool = True
    accepted: int = 0
    _headers: dict[str, Any] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._headers = {"s": self.router.node_id}

    def _check_running(self) -> None:
        if self.running:
            return
        turn = current_activation.get()
        if turn is not None and turn.is_running and turn.services is self.supervisor.node:
            return  # what was begun may still end well while the node is left
        raise SystemNotRunning("the actor system is not running; use it inside `async with ActorSystem(...)`")

    # Sending.

    async def ask(
        self,
        target: object,
        message: object,
        timeout_s: float | None,
        key: str | None,
        on_cancel: OnCancel,
    ) -> Any:
        """See `ActorSystem.ask`."""
        self._check_running()
        if on_cancel not in ("withdraw", "detach"):
            raise InvalidConfig(f"on_cancel: expected 'withdraw' or 'detach', got {on_cancel!r}")
        if key is not None:
            check_key(key)
        timeout_s = self._timeout("timeout_s", timeout_s, self.config.ask_timeout_s)
        call = self.calls.check(target, message) or await self.calls.look_up(target, message, timeout_s)
        activation = current_activation.get()
        headers = self._headers
        if activation is not None and activation.is_running and activation.services is self.supervisor.node:
            activation.context.refuse_in_transaction()
            headers, timeout_s = self._inherit(activation.context, call, timeout_s)
        if call.kind is not None and not call.kind.durable:
            if key is not None:
                raise NotSupported(f"key: kind {call.kind.name!r} is volatile; it keeps no keys")
            path = tuple(headers.get("p", ()))
            return await self.volatile.ask(call.kind, call.ref, call.partition, message, timeout_s, path)
        return await self._ask(call, timeout_s, key, on_cancel, headers, self.router.new_unique())

    async def ask_from_turn(
        self, context: TurnContext, entity: EntityRef, message: Message[Any], unique: str
    ) -> Any:
        """See `Context.ask`."""
        self._check_running()
        call = self.calls.check(entity, message) or await self.calls.look_up(entity, message)
        headers, timeout_s = self._inherit(context, call, self.config.ask_timeout_s)
        if call.kind is not None and not call.kind.durable:
            path = tuple(headers["p"])
            return await self.volatile.ask(call.kind, call.ref, call.partition, message, timeout_s, path)
        return await self._ask(call, timeout_s, None, "withdraw", headers, unique)

    def _inherit(self, context: TurnContext, call: Call, timeout_s: float) -> tuple[dict[str, Any], float]:
        """Path and deadline of an ask inside a turn."""
        path = (*context.path, str(context.entity))
        if call.entity in path:
            chain = " -> ".join((*path, call.entity))
            raise AskCycle(
                f"{call.entity} waits, directly or not, for this turn: {chain}; use self.outbox.add(...)",
                path=(*path, call.entity),
            )
        if self.config.max_hops and len(path) > self.config.max_hops:
            raise TooManyHops(
                f"the chain of asks {' -> '.join(path)} is longer than max_hops={self.config.max_hops}",
                path=path,
            )
        left_s = context.deadline - self.router.clock()
        if left_s <= 0:
            raise AskTimeout(f"no time is left to ask {call.entity}: the turn's deadline has passed")
        if left_s != float("inf"):
            timeout_s = min(timeout_s, left_s) if timeout_s else left_s
        return {**self._headers, "p": list(path)}, timeout_s

    async def _ask(
        self,
        call: Call,
        timeout_s: float,
        key: str | None,
        on_cancel: OnCancel,
        headers: dict[str, Any],
        unique: str,
    ) -> Any:
        router = self.router
        admission = self._admit(call)
        pending = Pending(
            router, "ask", call.partition, call.entity, unique, call.decode_reply, admission, call.journal
        )
        if self.listeners.active:
            pending.on_accepted = partial(self._emit_accepted, call, unique)
        deadline_ms = router.store_now_ms() + int(timeout_s * 1000) if timeout_s else 0
        router.send(
            pending, self._append(call, unique, key, deadline_ms, headers, admission, waits=True), timeout_s
        )
        outcome = await router.wait(pending, on_cancel, key or "")
        self.accepted += 1
        return router.value_of(pending, outcome)

    def _admit(self, call: Call) -> Admission | None:
        if call.kind is None:
            return None
        return self.supervisor.admit(call.kind, call.ref, call.entity, call.partition)

    def _append(
        self,
        call: Call,
        unique: str,
        key: str | None,
        deadline_ms: int,
        headers: dict[str, Any],
        admission: Admission | None,
        *,
        waits: bool,
    ) -> Append:
        body = pack_body(
            name=call.name,
            deadline_ms=deadline_ms,
            waited_for=waits,
            key=key or "",
            envelope=encode_envelope(headers, call.payload),
        )
        return Append(
            call.partition,
            call.entity,
            unique,
            body,
            key or "",
            digest_of(call.name, call.payload) if key else "",
            call.max_depth,
            admission.claim if admission is not None else "",
            admission.policy if admission is not None else "",
            admission.version if admission is not None else -1,
        )

    async def tell(
        self, target: object, message: object, key: str | None, expires_in_s: float | None
    ) -> Receipt[Any]:
        """See `ActorSystem.tell`."""
        self._check_running()
        if key is not None:
            check_key(key)
        if expires_in_s is not None and not self._timeout("expires_in_s", expires_in_s, 0):
            raise InvalidConfig(
                "expires_in_s: expected more than 0 seconds; leave it out to wait without end"
            )
        call = self.calls.check(target, message) or await self.calls.look_up(target, message)
        if call.kind is not None and not call.kind.durable:
            if key is not None or expires_in_s is not None:
                raise NotSupported(f"kind {call.kind.name!r} is volatile; it takes no key and no expiry")
            return self.volatile.tell(call.kind, call.ref, call.partition, message)
        pending = self._send_tell(call, key, expires_in_s)
        return self._receipt(call, pending, await pending.cell)

    def _send_tell(self, call: Call, key: str | None, expires_in_s: float | None) -> Pending:
        router = self.router
        deadline_ms = 0
        if expires_in_s is not None:
            deadline_ms = router.store_now_ms() + int(expires_in_s * 1000)
        unique = router.new_unique()
        admission = self._admit(call)
        pending = Pending(
            router, "tell", call.partition, call.entity, unique, call.decode_reply, admission, call.journal
        )
        if self.listeners.active:
            pending.on_accepted = partial(self._emit_accepted, call, unique)
        step = self._append(call, unique, key, deadline_ms, self._headers, admission, waits=False)
        router.send(pending, step, self.config.accept_timeout_s)
        return pending

    def _receipt(self, call: Call, pending: Pending, answer: object) -> Receipt[Any]:
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Appended)
        self.accepted += 1
        return Receipt(f"{call.entity}/{answer.unique}", call.ref, reply_type=call.reply_type)

    def _emit_accepted(self, call: Call, unique: str) -> None:
        self.listeners.emit(LifecycleEvent("accepted", f"{call.entity}/{unique}", call.ref, call.name))

    async def tell_many(self, messages: Sequence[object]) -> list[Receipt[Any]]:
        """See `ActorSystem.tell_many`."""
        self._check_running()
        pairs = [self._pair(pair) for pair in messages]
        calls = [self.calls.check(*pair) or await self.calls.look_up(*pair) for pair in pairs]
        for call in calls:
            if call.kind is not None and not call.kind.durable:
                raise NotSupported(f"tell_many: kind {call.kind.name!r} is volatile; tell one by one")
        receipts: list[Receipt[Any]] = []
        failures: list[tuple[int, AtomicActorsError]] = []
        for start in range(0, len(calls), TELL_MANY_WINDOW):
            window = calls[start : start + TELL_MANY_WINDOW]
            await self._tell_window(start, window, receipts, failures)
            if failures:
                break
        if failures:
            index, error = failures[0]
            error.add_note(f"{len(receipts)} of {len(calls)} messages were accepted; this is number {index}")
            raise error
        return receipts

    async def _tell_window(
        self,
        start: int,
        calls: Sequence[Call],
        receipts: list[Receipt[Any]],
        failures: list[tuple[int, AtomicActorsError]],
    ) -> None:
        sent: list[tuple[Call, Pending]] = []
        for index, call in enumerate(calls, start):
            try:
                pending = await self._send_when_there_is_room(call)
            except AtomicActorsError as error:
                failures.append((index, error))
                break
            sent.append((call, pending))
        for index, (call, pending) in enumerate(sent, start):
            try:
                receipts.append(self._receipt(call, pending, await pending.cell))
            except AtomicActorsError as error:
                failures.append((index, error))
        failures.sort(key=lambda failure: failure[0])

    async def _send_when_there_is_room(self, call: Call) -> Pending:
        """A bulk sender outruns the activations by design: it waits for room instead of failing."""
        deadline_s = self.router.clock() + self.config.accept_timeout_s
        while True:
            try:
                return self._send_tell(call, None, None)
            except ActorLimitExceeded:
                left_s = deadline_s - self.router.clock()
                if left_s <= 0:
                    raise
                await self.supervisor.wait_for_room(left_s)

    def _pair(self, pair: object) -> tuple[object, object]:
        if isinstance(pair, Message):
            return cast("object", pair), None
        if isinstance(pair, tuple):
            parts = cast("tuple[object, ...]", pair)
            if len(parts) == 2:
                return parts[0], parts[1]
        raise UnknownMessageType(f"tell_many: expected (entity, message) pairs, got {pair!r}")

    def _timeout(self, name: str, value: float | None, default: float) -> float:
        if value is None:
            return default
        if isinstance(cast("object", value), bool) or not isinstance(cast("object", value), (int, float)):
            raise InvalidConfig(f"{name}: expected seconds, got {value!r}")
        if not 0 <= value < float("inf"):
            raise InvalidConfig(f"{name}: expected 0 (unbounded) or more seconds, got {value!r}")
        return float(value)

    def send_soon(self, entity: EntityRef, message: Message[Any]) -> None:
        """Send without waiting: what a volatile turn's outbox does. A refusal is logged."""
        call = self.calls.check(entity, message)
        if call is None:
            self.calls.outlets.run(partial(self._send_later, entity, message))
            return
        if call.kind is not None and not call.kind.durable:
            self.volatile.tell(call.kind, call.ref, call.partition, message)
            return
        try:
            self._send_tell(call, None, None)
        except AtomicActorsError as error:
            logger.error("a message of a volatile turn to %s was not sent: %s", entity, error)

    async def _send_later(self, entity: EntityRef, message: Message[Any]) -> None:
        try:
            self._send_tell(await self.calls.look_up(entity, message), None, None)
        except AtomicActorsError as error:
            logger.error("a message of a volatile turn to %s was not sent: %s", entity, error)

    # Afterwards.

    def _locate(self, message: object) -> tuple[EntityRef, str, Any]:
        if isinstance(message, Receipt):
            receipt = cast("Receipt[object]", message)
            ref, unique = split_message_id(receipt.message_id)
            reply_type = receipt.reply_type
        elif isinstance(message, str):
            (ref, unique), reply_type = split_message_id(message), Any
        else:
            raise InvalidMessageId(f"expected a Receipt or a message id, got {type(message).__name__}")
        kind = self.kinds.get(ref.kind)
        if kind is not None and not kind.durable:
            raise NotSupported(f"kind {ref.kind!r} is volatile; it keeps no results and withdraws nothing")
        return ref, unique, reply_type

    def _check_not_leaving(self, ref: EntityRef, unique: str) -> None:
        """Of a message that was sent before, a system that is leaving knows nothing: not even that it never ran."""
        if not self.running:
            message_id = f"{ref}/{unique}"
            raise OutcomeUnknown(
                f"the actor system is being left; ask elsewhere what became of {message_id}",
                message_id=message_id,
            )

    async def _place_of_sent(self, ref: EntityRef, unique: str) -> tuple[GroupCommit, int]:
        if ref.kind in self.kinds or self.calls.known.registry is None:
            return self.router.journal, partition_of(str(ref), self.partitions)
        try:
            with anyio.fail_after(self.config.accept_timeout_s):
                journal, partition, _ = await self.calls.place_of(ref)
        except (StoreUnavailable, TimeoutError) as error:
            message_id = f"{ref}/{unique}"
            raise OutcomeUnknown(
                f"what became of {message_id} could not be looked up: {error}", message_id=message_id
            ) from error
        return journal, partition

    async def result(self, message: object, timeout_s: float | None) -> Any:
        """See `ActorSystem.result`."""
        ref, unique, reply_type = self._locate(message)
        self._check_not_leaving(ref, unique)
        entity = str(ref)
        decode = self.codec.decoder(reply_type)
        timeout_s = self._timeout("timeout_s", timeout_s, self.config.ask_timeout_s)
        journal, partition = await self._place_of_sent(ref, unique)
        pending = Pending(self.router, "result", partition, entity, unique, decode, None, journal)
        self.router.attach(pending, timeout_s)
        outcome = await self.router.wait(pending, "detach", "")
        return self.router.value_of(pending, outcome)

    async def withdraw(self, message: object) -> bool:
        """See `ActorSystem.withdraw`."""
        ref, unique, _ = self._locate(message)
        self._check_not_leaving(ref, unique)
        try:
            journal, partition = await self._place_of_sent(ref, unique)
        except OutcomeUnknown as error:
            logger.info("%s/%s could not be withdrawn: %s", ref, unique, error)
            return False
        answer = await self.router.withdraw(journal, partition, str(ref), unique, "")
        return answer is not None and answer.state == "withdrawn"
