"""The verbs: from `ask(entity, message)` to an append, and from an outcome to a reply.

Everything that can be wrong with a call is found before anything is sent: the kind, the message, its
content and size by `_call_checks`; the key, the time limits, a cycle of asks here.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import anyio
from attrs import define, field

from atomic_actors.actors._messages import Message
from atomic_actors.base._config import Config
from atomic_actors.base._errors import (
    ActorLimitExceeded,
    AskCycle,
    AskLimitExceeded,
    AskTimeout,
    AtomicActorsError,
    InvalidConfig,
    NotSupported,
    OutcomeUnknown,
    OwnerUnavailable,
    StoreUnavailable,
    SystemNotRunning,
    TooManyHops,
    UnknownKind,
)
from atomic_actors.base._oneshot import OneShot
from atomic_actors.base._records import EntityRef, Receipt, check_key, partition_of
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import Headers, derive_uid
from atomic_actors.contracts._call_checks import (
    OnCancel,
    check_on_cancel,
    check_seconds,
    locate_message,
    split_pair,
)
from atomic_actors.journal._protocol import Withdraw
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node.execution._activation import Activation
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.execution._turn import TurnContext, current_activation
from atomic_actors.node.routing._destinations import CallChecker, CheckedCall
from atomic_actors.node.routing._router import Router, SentMessage
from atomic_actors.node.routing._withdrawals import withdraw
from atomic_actors.node.volatile._activations import VolatileKinds
from atomic_actors.node.volatile._routes import VolatileRoutes

__all__ = ("Sender",)

#: Appends of one `tell_many` that may be under way at once.
TELL_MANY_WINDOW: Final = 2_000


@define(eq=False, kw_only=True)
class Sender:
    """Implements the verbs of `ActorSystem`.

    Args:
        config: time limits and sizes.
        store_clock: the store's time, and this process's clock.
        supervisor: gives the activations that take messages as they are appended.
        volatile: runs the kinds that have no journal.
        calls: checks what is sent, and finds out where it goes.
        routes: sends messages of volatile kinds to the nodes that own them; None where there can be no other node.
    """

    config: Config
    codec: Codec
    router: Router
    store_clock: StoreClock
    supervisor: Supervisor
    volatile: VolatileKinds
    call_checker: CallChecker
    routes: VolatileRoutes | None
    running: bool = field(default=True, init=False)
    #: Asks that wait for their replies now.
    inflight_asks: int = field(default=0, init=False)
    _headers: Headers = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._headers = Headers(sender=self.router.node_id)

    def _check_running(self) -> None:
        if self.running:
            return
        turn = current_activation.get()
        if turn is not None and turn.is_running and turn.calls is self:
            return  # what was begun may still end well while the node is left
        raise SystemNotRunning("the actor system is not running; use it inside `async with ActorSystem(...)`")

    def stop(self) -> None:
        """The system is being left: only turns that run already may still send."""
        self.running = False

    def abandon_all(self) -> None:
        """No answer comes any more: end every wait."""
        self.router.abandon_all()
        if self.routes is not None:
            self.routes.abandon_all()

    async def _look_up(self, target: object, message: object, limit_s: float = 0.0) -> CheckedCall:
        call = await self.call_checker.look_up(target, message, limit_s)
        self._check_running()  # the system may have been left meanwhile: no answer would come
        return call

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
        if on_cancel != "withdraw":
            check_on_cancel(on_cancel)
        if key is not None:
            check_key(key)
        if timeout_s is None:
            timeout_s = self.config.ask_timeout_s
        else:
            timeout_s = check_seconds("timeout_s", timeout_s, 0)
        call = self.call_checker.check(target, message)
        if call is None:
            began_s = self.store_clock.clock()
            call = await self._look_up(target, message, timeout_s)
            if timeout_s:
                timeout_s = max(timeout_s - (self.store_clock.clock() - began_s), 0.001)
        activation = current_activation.get()
        headers = self._headers
        if activation is not None and activation.is_running and activation.calls is self:
            activation.context.refuse_in_transaction()
            headers, timeout_s = self._inherit(activation.context, call, timeout_s)
        if call.is_volatile:
            if key is not None:
                raise NotSupported(f"key: kind {call.ref.kind!r} is volatile; it keeps no keys")
            return await self._ask_volatile(call, message, timeout_s, headers)
        return await self._ask(call, timeout_s, key, on_cancel, headers=headers, uid="")

    async def ask_from_turn(
        self, context: TurnContext, entity: EntityRef, message: Message[Any], ordinal: int
    ) -> Any:
        """See `Context.ask`: the message's id derives from the turn's message, its attempt, and the ordinal."""
        self._check_running()
        now_ms = self.store_clock.now_ms()
        uid = derive_uid(now_ms, context.message_id, context.attempt, "ask", ordinal)
        call = self.call_checker.check(entity, message)
        if call is None:
            left_s = max(context.deadline - self.store_clock.clock(), 0.001)
            call = await self._look_up(entity, message, 0.0 if left_s == float("inf") else left_s)
        headers, timeout_s = self._inherit(context, call, self.config.ask_timeout_s)
        if call.is_volatile:
            return await self._ask_volatile(call, message, timeout_s, headers)
        with self._awaiting(call):
            return await self._ask(call, timeout_s, None, "withdraw", headers=headers, uid=uid)

    @contextmanager
    def _awaiting(self, call: CheckedCall) -> Generator[None]:
        if call.kind is None:
            yield  # it does not live here
            return
        self.supervisor.await_entity(call.entity)
        try:
            yield
        finally:
            self.supervisor.let_go(call.partition, call.entity)

    def _inherit(self, context: TurnContext, call: CheckedCall, timeout_s: float) -> tuple[Headers, float]:
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
        left_s = context.deadline - self.store_clock.clock()
        if left_s <= 0:
            raise AskTimeout(f"no time left to ask {call.entity}: the turn's deadline has passed")
        if left_s != float("inf"):
            timeout_s = min(timeout_s, left_s) if timeout_s else left_s
        return Headers(sender=self._headers.sender, path=path), timeout_s

    def _count_ask(self, call: CheckedCall) -> None:
        """Count an ask that begins; it is sent right after.

        Raises:
            AskLimitExceeded: as many are waiting already as may.
        """
        limit = self.config.max_inflight_asks
        if limit and self.inflight_asks >= limit:
            raise AskLimitExceeded(
                f"{call.name} for {call.entity} was not sent: {limit} asks of this node are already waiting "
                "for replies (max_inflight_asks); send fewer asks at once, raise the limit, or use tell"
            )
        self.inflight_asks += 1

    async def _ask_volatile(
        self, call: CheckedCall, message: object, timeout_s: float, headers: Headers
    ) -> Any:
        """Hand a message over where its partition is ours, or send it to its owner."""
        self._count_ask(call)
        try:
            kind, path = call.kind, headers.path
            if kind is not None and self.routes is None:
                return await self.volatile.ask(
                    kind, call.ref, call.partition, message, timeout_s=timeout_s, path=path
                )
            if kind is not None and self._is_here(call):
                deadline_s = self.store_clock.clock() + timeout_s
                try:
                    return await self.volatile.ask(
                        kind, call.ref, call.partition, message, timeout_s=timeout_s, path=path
                    )
                except OwnerUnavailable as error:
                    # It did not begin: the next owner may still run it in time.
                    logger.debug("%s goes to the next owner: %s", call.name, error)
                timeout_s = max(deadline_s - self.store_clock.clock(), 0.001) if timeout_s else 0
            reply = await self._routes_to(call).ask(
                journal_of(call),
                call.partition,
                entity=call.entity,
                name=call.name,
                payload=call.payload,
                timeout_s=timeout_s,
                path=path,
            )
            return call.reply_coder.decode(reply)
        finally:
            self.inflight_asks -= 1

    def _is_here(self, call: CheckedCall) -> bool:
        """Whether a volatile message is for this node, and nothing that was sent before it waits for the owner."""
        routes = self.routes
        if routes is None:
            return True
        if call.service:
            return False
        here = self.volatile.owns(call.partition)
        if self.volatile.is_draining(call.partition):
            # What comes from outside is for the next owner, or a partition in use would never be given up. What
            # a running turn asks is answered here: the drain waits for that turn.
            turn = current_activation.get()
            return here and turn is not None and turn.is_running
        return here and not routes.waits_for(journal_of(call), call.partition)

    def _routes_to(self, call: CheckedCall) -> VolatileRoutes:
        if self.routes is None:
            raise UnknownKind(f"kind {call.ref.kind!r} has no handlers here, and no other node can have any")
        return self.routes

    async def _ask(
        self,
        call: CheckedCall,
        timeout_s: float,
        key: str | None,
        on_cancel: OnCancel,
        *,
        headers: Headers,
        uid: str,
    ) -> Any:
        self._count_ask(call)
        try:
            return await self.router.ask(
                call,
                self._admit(call),
                headers,
                uid=uid,
                key=key or "",
                timeout_s=timeout_s,
                on_cancel=on_cancel,
                in_turn=current_activation.get() is not None,
            )
        finally:
            self.inflight_asks -= 1

    def _admit(self, call: CheckedCall) -> Activation | None:
        if call.kind is None:
            return None
        return self.supervisor.admit(call.kind, call.ref, call.entity, call.partition)

    async def tell(
        self, target: object, message: object, key: str | None, expires_in_s: float | None
    ) -> Receipt[Any]:
        """See `ActorSystem.tell`."""
        self._check_running()
        if key is not None:
            check_key(key)
        if expires_in_s is not None and not check_seconds("expires_in_s", expires_in_s, 0):
            raise InvalidConfig(
                "expires_in_s: expected more than 0 seconds; leave it out to wait indefinitely"
            )
        call = self.call_checker.check(target, message) or await self._look_up(target, message)
        if call.is_volatile:
            if key is not None or expires_in_s is not None:
                raise NotSupported(f"kind {call.ref.kind!r} is volatile; it takes no key and no expiry")
            return await self._tell_volatile(call, message)
        return self._receipt(call, await self._send_tell(call, key, expires_in_s))

    async def _tell_volatile(self, call: CheckedCall, message: object) -> Receipt[Any]:
        if call.kind is not None and self._is_here(call):
            try:
                return self.volatile.tell(call.kind, call.ref, call.partition, message)
            except OwnerUnavailable:
                if self.routes is None:
                    raise
        answer = await self._routes_to(call).tell(
            journal_of(call), call.partition, call.entity, call.name, call.payload
        )
        if isinstance(answer, BaseException):
            raise answer
        return Receipt(f"{call.ref}/{answer:032x}", call.ref)

    def _send_tell(self, call: CheckedCall, key: str | None, expires_in_s: float | None) -> OneShot[Any]:
        return self.router.tell(
            call,
            self._admit(call),
            self._headers,
            key=key or "",
            expires_in_s=expires_in_s,
            timeout_s=self.config.accept_timeout_s,
        )

    def _receipt(self, call: CheckedCall, answer: object) -> Receipt[Any]:
        uid = self.router.receipt_of(answer)
        return Receipt(f"{call.entity}/{uid}", call.ref, reply_type=call.reply_type)

    async def tell_many(self, messages: Sequence[object]) -> list[Receipt[Any]]:
        """See `ActorSystem.tell_many`."""
        self._check_running()
        pairs = [split_pair(pair) for pair in messages]
        calls = [self.call_checker.check(*pair) or await self._look_up(*pair) for pair in pairs]
        for call in calls:
            if call.is_volatile:
                raise NotSupported(f"tell_many: kind {call.ref.kind!r} is volatile; tell one by one")
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
        calls: Sequence[CheckedCall],
        receipts: list[Receipt[Any]],
        failures: list[tuple[int, AtomicActorsError]],
    ) -> None:
        sent: list[tuple[CheckedCall, OneShot[Any]]] = []
        for index, call in enumerate(calls, start):
            try:
                oneshot = await self._send_when_there_is_room(call)
            except AtomicActorsError as error:
                failures.append((index, error))
                break
            sent.append((call, oneshot))
        for index, (call, oneshot) in enumerate(sent, start):
            try:
                receipts.append(self._receipt(call, await oneshot))
            except AtomicActorsError as error:
                failures.append((index, error))
        failures.sort(key=lambda failure: failure[0])

    async def _send_when_there_is_room(self, call: CheckedCall) -> OneShot[Any]:
        """A bulk sender outruns the activations by design: it waits for room instead of failing."""
        deadline_s = self.store_clock.clock() + self.config.accept_timeout_s
        while True:
            try:
                return self._send_tell(call, None, None)
            except ActorLimitExceeded:
                left_s = deadline_s - self.store_clock.clock()
                if left_s <= 0:
                    raise
                await self.supervisor.catalog.wait_for_room(left_s)

    def send_soon(self, entity: EntityRef, message: Message[Any]) -> None:
        """Send without waiting: what a volatile turn's outbox does. A refusal is logged."""
        try:
            call = self.call_checker.check(entity, message)
        except AtomicActorsError as error:
            logger.error("a message of a volatile turn to %s was not sent: %s", entity, error)
            return
        if call is None:
            self.call_checker.service_journals.run(partial(self._send_later, entity, message))
        else:
            self._send_call(call, message)

    def _send_call(self, call: CheckedCall, message: Message[Any]) -> None:
        try:
            if not call.is_volatile:
                _ = self._send_tell(call, None, None)
            elif call.kind is not None and self._is_here(call):
                self.volatile.tell(call.kind, call.ref, call.partition, message)
            else:
                _ = self._routes_to(call).tell(
                    journal_of(call), call.partition, call.entity, call.name, call.payload
                )
        except AtomicActorsError as error:
            logger.error("a message of a volatile turn to %s was not sent: %s", call.ref, error)

    async def _send_later(self, entity: EntityRef, message: Message[Any]) -> None:
        try:
            self._send_call(await self.call_checker.look_up(entity, message), message)
        except AtomicActorsError as error:
            logger.error("a message of a volatile turn to %s was not sent: %s", entity, error)

    # Afterwards.

    def _locate(self, message: object) -> tuple[EntityRef, str, Any]:
        ref, uid, reply_type = locate_message(message)
        self._check_keeps_results(ref)
        return ref, uid, reply_type

    def _check_keeps_results(self, ref: EntityRef) -> None:
        if self.call_checker.is_volatile(ref.kind):
            raise NotSupported(f"kind {ref.kind!r} is volatile; it has no stored results and no withdrawal")

    def _check_not_leaving(self, ref: EntityRef, uid: str) -> None:
        """Of a message that was sent before, a system that is leaving knows nothing: not even that it never ran."""
        if not self.running:
            message_id = f"{ref}/{uid}"
            raise OutcomeUnknown(
                f"the actor system is shutting down; use `result` of another system or client for {message_id}",
                message_id=message_id,
            )

    async def _place_of_sent(self, ref: EntityRef, uid: str) -> tuple[CommitQueue, int]:
        if ref.kind in self.call_checker.kinds or self.call_checker.remote_kinds.registry is None:
            return self.call_checker.journal, partition_of(str(ref), self.config.partitions)
        try:
            with anyio.fail_after(self.config.accept_timeout_s):
                journal, partition, _ = await self.call_checker.place_of(ref)
        except (StoreUnavailable, TimeoutError) as error:
            message_id = f"{ref}/{uid}"
            raise OutcomeUnknown(
                f"what became of {message_id} could not be looked up: {error}", message_id=message_id
            ) from error
        self._check_keeps_results(ref)
        self._check_not_leaving(ref, uid)
        return journal, partition

    async def result(self, message: object, timeout_s: float | None) -> Any:
        """See `ActorSystem.result`."""
        ref, uid, reply_type = self._locate(message)
        self._check_not_leaving(ref, uid)
        reply_coder = self.codec.coder(reply_type)
        timeout_s = check_seconds("timeout_s", timeout_s, self.config.ask_timeout_s)
        journal, partition = await self._place_of_sent(ref, uid)
        sent = SentMessage(entity=str(ref), partition=partition, journal=journal, reply_coder=reply_coder)
        return await self.router.result(sent, uid, timeout_s)

    async def withdraw(self, message: object) -> bool:
        """See `ActorSystem.withdraw`."""
        ref, uid, _ = self._locate(message)
        self._check_not_leaving(ref, uid)
        try:
            journal, partition = await self._place_of_sent(ref, uid)
        except OutcomeUnknown as error:
            logger.info("%s/%s could not be withdrawn: %s", ref, uid, error)
            return False
        return await withdraw(self.router, journal, Withdraw(partition, str(ref), uid))


def journal_of(call: CheckedCall) -> CommitQueue:
    """Where a call that is not for an outbox goes."""
    assert call.journal is not None
    return call.journal
