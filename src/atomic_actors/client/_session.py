"""What a client has in one process: connections, a listener, waiters; and what its verbs do.

A forked child begins with a new session: nothing here is shared between processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from threading import RLock
from typing import Any, Final, cast

from attrs import define

from atomic_actors.actors._messages import RawMessage
from atomic_actors.base._config import Config
from atomic_actors.base._errors import (
    AtomicActorsError,
    EmbeddedServerError,
    InvalidConfig,
    OutcomeUnknown,
    StoreUnavailable,
)
from atomic_actors.base._records import EntityRef, Receipt, message_id_of, partition_of
from atomic_actors.base._store_url import StoreScheme
from atomic_actors.base._telemetry import logger
from atomic_actors.client._connections import ConnectionPool
from atomic_actors.client._embedded_user import EmbeddedUser
from atomic_actors.client._replies import ReplyListener
from atomic_actors.client._servers import SingleServer, servers_at
from atomic_actors.client._store import BlockingStore
from atomic_actors.client._waiting import Waiter, Waiters
from atomic_actors.codec._codec import Codec, Coder
from atomic_actors.codec._envelope import Headers, digest_of, encode_envelope, make_uid
from atomic_actors.contracts._call_checks import (
    ForeignMessages,
    OnCancel,
    check_size,
    locate_message,
    resolve_target,
)
from atomic_actors.contracts._outcomes import (
    RefusalReader,
    missing_message_error,
    read_outcome,
    refusal_of_append,
    timeout_error,
)
from atomic_actors.contracts._waiting import POLL_FIRST_REMOTE_S, POLL_MAX_S, WITHDRAW_LIMIT_S
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    JournalUnavailable,
    OutcomeRead,
    ReadOutcome,
    Result,
    Withdraw,
    WithdrawAnswer,
    pack_body,
)
from atomic_actors.journal._settings import CONNECT_TIMEOUT_S
from atomic_actors.journal.commit._batches import STEP_OVERHEAD_BYTES
from atomic_actors.journal.embedded._embedded import embedded_directory

__all__ = ("ClientCall", "Session", "Vocabulary")

#: The first look into the store while pushes are heard; elsewise it comes sooner.
POLL_FIRST_S: Final = 0.05
RANDOM_BYTES: Final = 10


@define(eq=False, slots=True, kw_only=True)
class ClientCall:
    """A checked call: where it goes and what it carries."""

    ref: EntityRef
    entity: str
    partition: int
    name: str
    payload: bytes
    reply_coder: Coder
    reply_type: Any


class Vocabulary:
    """The classes of messages, replies and refusals, shared by all threads.

    How a class is stored is worked out once, under a lock; what comes of it needs none.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._codec = Codec()
        self._foreign = ForeignMessages(self._codec)
        self._refusals = RefusalReader(self._codec)
        self._lock = RLock()

    def check(self, target: object, message: object) -> ClientCall:
        """A call, checked.

        Raises:
            UsageError: the entity, the message or its content is wrong.
        """
        ref, message = resolve_target(target, message)
        with self._lock:
            if type(message) is RawMessage:
                name, reply_type = message.name, Any
                coder = reply_coder = self._codec.coder(Any)
                content: object = message.payload
            else:
                known = self._foreign.class_of(message)
                name, reply_type = known.name, known.reply_type
                coder, reply_coder, content = known.coder, known.reply_coder, message
        payload = coder.encode(content)
        check_size(name, ref, payload, self._config.max_payload_bytes)
        entity = str(ref)
        partition = partition_of(entity, self._config.partitions)
        return ClientCall(
            ref=ref,
            entity=entity,
            partition=partition,
            name=name,
            payload=payload,
            reply_coder=reply_coder,
            reply_type=reply_type,
        )

    def coder(self, reply_type: Any) -> Coder:
        """What makes replies of bytes."""
        with self._lock:
            return self._codec.coder(reply_type)

    def read_refusal(self, data: bytes) -> AtomicActorsError:
        """The exception of a stored refusal (`Refusals`)."""
        with self._lock:
            return self._refusals.read_refusal(data)


class Session:
    """The verbs of a client, in one process.

    Args:
        config: the settings.
        max_connections: how many connections may be open beside the listener's.

    Raises:
        InvalidConfig: the certificates that the URL names cannot be read.
        EmbeddedServerError: the private server cannot be started or joined.
    """

    def __init__(self, config: Config, max_connections: int) -> None:
        self.pid = os.getpid()
        self._config = config
        self._words = Vocabulary(config)
        self._embedded: EmbeddedUser | None = None
        location = config.location
        if location.scheme is StoreScheme.EMBEDDED:
            self._embedded = EmbeddedUser(embedded_directory(config.url), config.server_binary)
            location = self._embedded.join()
            servers: Any = SingleServer(
                location, CONNECT_TIMEOUT_S, config.store_timeout_s, self._embedded.bring_back
            )
        else:
            servers = servers_at(location, CONNECT_TIMEOUT_S, config.store_timeout_s)
        self._pool = ConnectionPool(servers, max_connections)
        self._store = BlockingStore(config, servers, self._pool)
        self._waiters = Waiters()
        self.node_id = os.urandom(8).hex()
        self._listener = ReplyListener(
            servers,
            f"{config.namespace}:reply:{self.node_id}",
            self._waiters.answered,
            config.store_timeout_s,
        )
        self._headers = Headers(sender=self.node_id)

    def close(self) -> None:
        """Close the connections; who still waits gets `OutcomeUnknown`.

        Raises:
            EmbeddedServerError: the private server had no other user, and cannot be stopped.
        """
        self._waiters.close(
            OutcomeUnknown("the client was closed before an answer came; ask again with result(message_id)")
        )
        self._listener.stop()
        self._pool.close()
        if self._embedded is not None:
            self._embedded.leave()

    def abandon(self) -> None:
        """In a forked child: let go of what belongs to the parent, without a lock and without a word."""
        self._listener.abandon()
        self._pool.abandon()

    # Asking.

    def ask(
        self, target: object, message: object, timeout_s: float, key: str | None, on_cancel: OnCancel
    ) -> Any:
        """See `Client.ask`."""
        call = self._words.check(target, message)
        until_s = time.monotonic() + timeout_s if timeout_s else float("inf")
        now_ms = self._now_ms(min(until_s, time.monotonic() + self._config.accept_timeout_s))
        deadline_ms = now_ms + int(timeout_s * 1000) if timeout_s else 0
        waiter = Waiter("ask", call.entity, self._new_uid(now_ms), key or "")
        step = self._append(call, waiter.uid, key, deadline_ms, waits=True)
        self._listener.start()
        self._waiters.add(waiter)
        try:
            self._send(waiter, step, until_s)
            first_s = POLL_FIRST_S if self._listener.is_listening else POLL_FIRST_REMOTE_S
            outcome = self._await(waiter, call.partition, until_s, first_s)
        except AtomicActorsError:
            self._waiters.remove(waiter)
            raise
        except BaseException:
            # Ctrl-C, or what a signal handler raises: the caller no longer waits.
            self._waiters.remove(waiter)
            self._cancel(waiter, call.partition, on_cancel)
            raise
        self._waiters.remove(waiter)
        return self._value_of(waiter, outcome, call.reply_coder)

    def _send(self, waiter: Waiter, step: Append, until_s: float) -> None:
        try:
            results = self._store.commit((step,), until_s, waiter.wait)
        except JournalUnavailable as error:
            raise self._not_answered(waiter, error) from error
        if results is None:
            return  # the reply came before the answer to the append
        (result,) = results
        if not isinstance(result, Appended):
            raise refusal_of_append(result, waiter.entity, waiter.message_id)
        waiter.accepted = True
        if result.uid != waiter.uid:
            self._waiters.join(waiter, result.uid)
        if result.outcome is not None:
            self._waiters.answered(waiter.entity, waiter.uid, result.outcome)
        elif result.duplicate:
            self._look_up(waiter, step.partition, until_s)

    def _not_answered(self, waiter: Waiter, error: JournalUnavailable) -> AtomicActorsError:
        if error.sent:
            return timeout_error(waiter.waiting, waiter.message_id)
        return StoreUnavailable(f"nothing was sent: {error}", message_id=waiter.message_id)

    def _await(self, waiter: Waiter, partition: int, until_s: float, delay_s: float) -> bytes:
        """Wait for an outcome: for the push, and ever more rarely by a look into the store."""
        while True:
            left_s = until_s - time.monotonic()
            if waiter.wait(min(delay_s, left_s)):
                break
            if left_s <= delay_s:
                raise timeout_error(waiter.waiting, waiter.message_id)
            self._listener.start()
            self._look_up(waiter, partition, until_s)
            delay_s = min(delay_s * 2, POLL_MAX_S)
        if isinstance(waiter.value, BaseException):
            raise self._fresh(waiter, waiter.value)
        assert waiter.value is not None
        return waiter.value

    def _fresh(self, waiter: Waiter, error: BaseException) -> BaseException:
        """An exception of this waiter's own: several may wait, and each raises its own."""
        if type(error) is OutcomeUnknown:
            return OutcomeUnknown(str(error), message_id=waiter.message_id)
        return error

    def _look_up(self, waiter: Waiter, partition: int, until_s: float) -> None:
        # "Unknown" counts only if the message was there when the question was asked: a re-sent append may
        # overtake it.
        was_sent_before = waiter.accepted or waiter.waiting == "result"
        result = self._store.try_once(ReadOutcome(partition, waiter.entity, waiter.uid), until_s)
        if not isinstance(result, OutcomeRead):
            return
        if result.state == "finished" and result.outcome is not None:
            self._waiters.answered(waiter.entity, waiter.uid, result.outcome)
        elif result.state == "unknown" and was_sent_before and not waiter.done:
            raise missing_message_error(
                waiter.message_id,
                self._now_ms(until_s),
                self._store.settings.result_ttl_ms,
                accepted=waiter.accepted,
            )

    def _value_of(self, waiter: Waiter, outcome: bytes, reply_coder: Coder) -> Any:
        return read_outcome(outcome, waiter.message_id, reply_coder, self._words)

    def _cancel(self, waiter: Waiter, partition: int, on_cancel: OnCancel) -> None:
        if on_cancel == "detach":
            self._waiters.mark_shared(waiter.uid)
        elif not self._waiters.is_shared(waiter):
            until_s = time.monotonic() + WITHDRAW_LIMIT_S
            self._withdraw(partition, waiter.entity, waiter.uid, waiter.key, until_s)

    # Telling.

    def tell(
        self, target: object, message: object, key: str | None, expires_in_s: float | None
    ) -> Receipt[Any]:
        """See `Client.tell`."""
        call = self._words.check(target, message)
        until_s = time.monotonic() + self._config.accept_timeout_s
        now_ms = self._now_ms(until_s)
        deadline_ms = now_ms + int(expires_in_s * 1000) if expires_in_s is not None else 0
        waiter = Waiter("tell", call.entity, self._new_uid(now_ms), key or "")
        step = self._append(call, waiter.uid, key, deadline_ms, waits=False)
        self._waiters.add(waiter)
        try:
            (result,) = cast("Sequence[Result]", self._store.commit((step,), until_s))
        except JournalUnavailable as error:
            raise self._not_answered(waiter, error) from error
        finally:
            self._waiters.remove(waiter)
        return self._receipt(call, waiter.uid, result)

    def _receipt(self, call: ClientCall, uid: str, result: Result) -> Receipt[Any]:
        if not isinstance(result, Appended):
            raise refusal_of_append(result, call.entity, message_id_of(call.entity, uid))
        if result.uid != uid:
            self._waiters.mark_shared(result.uid)
        return Receipt(message_id_of(call.entity, result.uid), call.ref, reply_type=call.reply_type)

    def tell_many(self, pairs: Sequence[tuple[object, object]]) -> list[Receipt[Any]]:
        """See `Client.tell_many`."""
        calls = [self._words.check(target, message) for target, message in pairs]
        receipts: list[Receipt[Any]] = []
        at = 0
        while at < len(calls):
            window = self._window(calls, at)
            failures = self._tell_window(at, window, receipts)
            if failures:
                index = min(failures)
                error = failures[index]
                error.add_note(
                    f"{len(receipts)} of {len(calls)} messages were accepted; this is number {index}"
                )
                raise error
            at += len(window)
        return receipts

    def _window(self, calls: Sequence[ClientCall], start: int) -> Sequence[ClientCall]:
        """What goes next, in one call where partitions may share one."""
        size_bytes, end = 0, start
        while end < len(calls) and end - start < self._config.max_batch_steps:
            size_bytes += len(calls[end].payload) + STEP_OVERHEAD_BYTES
            if size_bytes > self._config.max_batch_bytes and end > start:
                break
            end += 1
        return calls[start:end]

    def _tell_window(
        self, start: int, calls: Sequence[ClientCall], receipts: list[Receipt[Any]]
    ) -> dict[int, AtomicActorsError]:
        """Send some messages, and note what became of them: receipts in order, and errors by position."""
        until_s = time.monotonic() + self._config.accept_timeout_s
        now_ms = self._now_ms(until_s)
        steps = [self._append(call, self._new_uid(now_ms), None, 0, waits=False) for call in calls]
        accepted: dict[int, Receipt[Any]] = {}
        failures: dict[int, AtomicActorsError] = {}
        for positions in self._store.share_calls(steps):
            try:
                results = self._store.commit([steps[at] for at in positions], until_s) or ()
            except JournalUnavailable as error:
                first = steps[positions[0]]
                waiter = Waiter("tell", first.entity, first.uid)
                failures[start + positions[0]] = self._not_answered(waiter, error)
                break
            for at, result in zip(positions, results, strict=True):
                try:
                    accepted[at] = self._receipt(calls[at], steps[at].uid, result)
                except AtomicActorsError as error:
                    failures[start + at] = error
        receipts.extend(accepted[at] for at in sorted(accepted))
        return failures

    # Afterwards.

    def result(self, message: object, timeout_s: float) -> Any:
        """See `Client.result`."""
        ref, uid, reply_type = locate_message(message)
        reply_coder = self._words.coder(reply_type)
        until_s = time.monotonic() + timeout_s if timeout_s else float("inf")
        self._now_ms(min(until_s, time.monotonic() + self._config.accept_timeout_s))
        entity = str(ref)
        partition = partition_of(entity, self._config.partitions)
        waiter = Waiter("result", entity, uid)
        self._waiters.add(waiter)
        try:
            self._look_up(waiter, partition, until_s)
            outcome = self._await(waiter, partition, until_s, POLL_FIRST_REMOTE_S)
        finally:
            self._waiters.remove(waiter)
        return self._value_of(waiter, outcome, reply_coder)

    def withdraw(self, message: object) -> bool:
        """See `Client.withdraw`."""
        ref, uid, _ = locate_message(message)
        entity = str(ref)
        until_s = time.monotonic() + self._config.accept_timeout_s
        self._now_ms(until_s)
        partition = partition_of(entity, self._config.partitions)
        return self._withdraw(partition, entity, uid, "", until_s)

    def _withdraw(self, partition: int, entity: str, uid: str, key: str, until_s: float) -> bool:
        try:
            answer = self._ask_to_withdraw(Withdraw(partition, entity, uid, key), until_s)
            if answer.state == "needs_key":
                answer = self._ask_to_withdraw(Withdraw(partition, entity, uid, answer.key), until_s)
        except JournalUnavailable as error:
            logger.info("%s/%s could not be withdrawn: %s", entity, uid, error)
            return False
        if answer.state != "withdrawn":
            return False
        self._waiters.answered(entity, uid, b"withdrawn\n")
        return True

    def _ask_to_withdraw(self, step: Withdraw, until_s: float) -> WithdrawAnswer:
        (answer,) = cast("Sequence[Result]", self._store.commit((step,), until_s))
        return cast("WithdrawAnswer", answer)

    # Making steps.

    def _now_ms(self, until_s: float) -> int:
        try:
            return self._store.now_ms(until_s)
        except JournalUnavailable as error:
            raise StoreUnavailable(f"nothing was sent: {error}") from error

    def _new_uid(self, now_ms: int) -> str:
        return make_uid(now_ms, int.from_bytes(os.urandom(RANDOM_BYTES), "big"))

    def _append(
        self, call: ClientCall, uid: str, key: str | None, deadline_ms: int, *, waits: bool
    ) -> Append:
        body = pack_body(
            name=call.name,
            deadline_ms=deadline_ms,
            waited_for=waits,
            key=key or "",
            envelope=encode_envelope(self._headers, call.payload),
        )
        digest = digest_of(call.name, call.payload) if key else ""
        return Append(
            partition=call.partition,
            entity=call.entity,
            uid=uid,
            body=body,
            key=key or "",
            digest=digest,
            depth_limit=self._config.max_depth,
        )


def check_location(config: Config) -> None:
    """Raise `InvalidConfig` for a store that no client can reach."""
    if config.location.scheme is StoreScheme.MEMORY:
        raise InvalidConfig(
            "url: 'memory:' lives inside one ActorSystem, where no client can reach it; use 'embedded:' or "
            "redis://, here and there"
        )


def close_quietly(session: Session) -> None:
    """Close a session whose client has another error to tell."""
    try:
        session.close()
    except EmbeddedServerError:
        logger.exception("the embedded server could not be stopped")
