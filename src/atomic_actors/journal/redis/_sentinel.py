"""Finds the primary that Sentinel has appointed, and leaves one that it has replaced.

All connections of a node are made here, so that its steps, its hints and its lease renewals go to the same
server: a lease that is renewed at one primary while another one takes the steps would let two owners run.

The sentinels are all asked at once. What more than half of those named in the URL say is taken; where that does
not come about in time, what most of those say that answered. A sentinel that was cut off for a while can still name
a demoted primary, so the server itself is asked for its role before it is used.

A failover of Sentinel ends the connections to an old primary that lives, but only after the new one was appointed,
and not if it cannot be reached. Until then the old one goes on, and what it acknowledges is lost. So the sentinels are
asked again and again, and where they name another primary, all connections to the old one are given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self
from weakref import WeakKeyDictionary

import anyio
import attrs
from anyio import AsyncContextManagerMixin
from coredis.connection import BaseConnection
from coredis.parser import NotEnoughData, Parser

from atomic_actors.base._errors import InvalidConfig, StoreIncompatible
from atomic_actors.base._store_url import StoreLocation, StoreScheme
from atomic_actors.base._telemetry import logger
from atomic_actors.journal._protocol import JournalUnavailable
from atomic_actors.journal.redis._direct_connection import connect_stream, pack_command
from atomic_actors.journal.redis._link import RedisServer, explain, redis_url, tls_context
from atomic_actors.journal.redis._task_groups import detached_task_group

__all__ = ("Primary",)

#: How often the sentinels are asked whether there is another primary.
WATCH_INTERVAL_S: Final = 0.5
_YES: Final = ("1", "true", "yes")
_NO: Final = ("", "0", "false", "no")

Address = tuple[str, int]


@attrs.define(eq=False)
class _Survey:
    """What the sentinels say."""

    votes: Counter[Address] = attrs.field(factory=Counter[Address])
    #: Sentinels that do not know the service.
    strangers: list[str] = attrs.field(factory=list[str])
    #: Why others refused to answer.
    refusals: list[str] = attrs.field(factory=list[str])
    #: Why the rest gave no answer.
    troubles: list[str] = attrs.field(factory=list[str])


class Primary(AsyncContextManagerMixin):
    """The primary of one service. Within `async with`, it is noticed when there is another one.

    Args:
        location: the sentinels, the name of the service, and the credentials of its servers.
        connect_timeout_s: how long connecting to the primary may take, with finding it.
        warn_asynchronous: say so in the log if a failover may lose what was accepted.

    Raises:
        InvalidConfig: the location names no sentinels, or its certificates cannot be read.
    """

    def __init__(
        self, location: StoreLocation, *, connect_timeout_s: float = 3.0, warn_asynchronous: bool = True
    ) -> None:
        if location.scheme is not StoreScheme.SENTINEL:
            raise InvalidConfig(f"url: {location} does not name any sentinels")
        options = dict(location.options)
        tls = options.pop("tls", "yes" if options else "")
        if tls not in (*_YES, *_NO):
            raise InvalidConfig(f"url: tls={tls!r} is neither true nor false")
        if options and tls in _NO:
            raise InvalidConfig(f"url: {min(options)} has no effect with tls=false")
        self._location = location
        self._server = attrs.evolve(
            location,
            scheme=StoreScheme.REDISS if tls in _YES else StoreScheme.REDIS,
            service_name="",
            options=tuple(options.items()),
        )
        self._connect_timeout_s = connect_timeout_s
        # Ask the sentinels, ask the server for its role, connect to it: each has its share.
        self._answer_limit_s = connect_timeout_s / 3
        self._warn_asynchronous = warn_asynchronous
        self._address: Address | None = None
        #: Where those that were made here lead to.
        self._connections: WeakKeyDictionary[BaseConnection, Address] = WeakKeyDictionary()
        self._lock = anyio.Lock()
        self._tls = tls_context(self._server) if tls in _YES else None

    def __repr__(self) -> str:
        return f"<Primary of {self._location.service_name!r}: {_text(self._address)}>"

    @property
    def address(self) -> Address | None:
        """Where it is, as far as is known; None before it was found. Any thread may read it."""
        return self._address

    def url(self) -> str:
        """Its URL with the password, for the blocking client; never log it. Any thread may call it.

        Raises:
            ConnectionError: it was not found yet.
        """
        if self._address is None:
            raise ConnectionError(f"the primary of {self._location.service_name!r} has not been found yet")
        return redis_url(self._at(self._address))

    async def connect(self) -> BaseConnection:
        """A connection to it that is not open yet (`Connector`).

        Raises:
            JournalUnavailable: no sentinel answers, or there is no primary now.
            StoreIncompatible: no sentinel knows the service, or they want another password.
        """
        address = await self.find()
        connection = await RedisServer(self._at(address), connect_timeout_s=self._connect_timeout_s).connect()
        self._connections[connection] = address
        return connection

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with detached_task_group() as task_group:
            task_group.start_soon(self._watch)
            yield self

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(WATCH_INTERVAL_S)
            if self._address is None:
                continue
            try:
                await self.find(known=self._address)
            except (JournalUnavailable, StoreIncompatible) as error:
                # Connections that work are kept; those who have none get this error themselves.
                logger.debug("cannot ask for the primary: %s", error)

    async def find(self, known: Address | None = None) -> Address:
        """Find it, and give up the connections to any other server.

        Args:
            known: where it is known to be; that server is not asked for its role again.

        Raises:
            JournalUnavailable: no sentinel answers, or there is no primary now.
            StoreIncompatible: no sentinel knows the service, or they want another password.
        """
        # One at a time: an older finding must not replace a younger one.
        async with self._lock:
            survey = await self._ask_sentinels()
            name = self._location.service_name
            if not survey.votes:
                raise self._no_answer(survey)
            troubles: list[str] = []
            for address, _ in survey.votes.most_common():
                if address == known == self._address:
                    return address
                try:
                    information = await self._role_of(address)
                except JournalUnavailable as error:
                    troubles.append(f"{_text(address)}: {error}")
                    continue
                if information.get("role") == "master":
                    self._adopt(address, information)
                    return address
                troubles.append(
                    f"{_text(address)}, which is a {information.get('role', 'server without a role')}"
                )
            raise JournalUnavailable(
                f"service {name!r} has no primary now; the sentinels name {'; '.join(troubles)}", sent=False
            )

    def _no_answer(self, survey: _Survey) -> JournalUnavailable | StoreIncompatible:
        name = self._location.service_name
        if survey.refusals:
            text = f"a sentinel of {name!r} refused to answer ({survey.refusals[0]})"
        elif survey.strangers:
            text = (
                f"the sentinels ({', '.join(survey.strangers)}) do not know service {name!r}; the url must end with "
                "the name that follows `sentinel monitor` in their configuration"
            )
        else:
            text = f"no sentinel of {name!r} answered ({'; '.join(survey.troubles)})"
        # Where it was known before, a sentinel that lost its configuration is not a reason to give up.
        if self._address is None and (survey.refusals or survey.strangers):
            return StoreIncompatible(text)
        return JournalUnavailable(text, sent=False)

    def _adopt(self, address: Address, information: dict[str, str]) -> None:
        before, self._address = self._address, address
        name = self._location.service_name
        if before is None:
            if self._warn_asynchronous and "min_slaves_good_slaves" not in information:
                logger.warning(
                    "the primary of %r acknowledges writes that no replica has yet: a failover may lose accepted "
                    'messages, and finished turns may run again. Set replication="acknowledged", or '
                    "min-replicas-to-write in the store; docs/guarantees.md explains both",
                    name,
                )
        elif before != address:
            logger.warning(
                "the primary of %r is now %s, not %s any more", name, _text(address), _text(before)
            )
        for connection, place in tuple(self._connections.items()):
            if place != address:
                connection.invalidate("there is another primary now")

    # Questions.

    def _at(self, address: Address) -> StoreLocation:
        return attrs.evolve(self._server, hosts=(address,))

    async def _ask_sentinels(self) -> _Survey:
        """Ask all of them at once, until more than half agree or all have answered or failed."""
        survey, hosts = _Survey(), self._location.hosts

        async def ask_one(host: Address) -> None:
            try:
                answer = await self._ask_sentinel(host)
            except StoreIncompatible as error:
                survey.refusals.append(f"{_text(host)}: {error}")
                return
            except JournalUnavailable as error:
                survey.troubles.append(f"{_text(host)}: {error}")
                return
            if answer is None:
                survey.strangers.append(_text(host))
                return
            address = answer[0].decode(), int(answer[1])
            survey.votes[address] += 1
            if survey.votes[address] > len(hosts) // 2:
                task_group.cancel_scope.cancel()

        async with anyio.create_task_group() as task_group:
            for host in hosts:
                task_group.start_soon(ask_one, host)
        return survey

    async def _ask_sentinel(self, host: Address) -> Sequence[bytes] | None:
        question = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._location.service_name.encode())
        answer: Sequence[bytes] | None = await self._ask(host, question)
        return answer

    async def _role_of(self, address: Address) -> dict[str, str]:
        # INFO and not ROLE: users of the store need the right to it anyway.
        answer: bytes = await self._ask(address, (b"INFO", b"replication"))
        lines = (line.partition(":") for line in answer.decode("utf-8", "replace").splitlines())
        return {name: value for name, _, value in lines}

    async def _ask(self, address: Address, question: tuple[bytes, ...]) -> Any:
        """Ask one question on a connection of its own.

        Raises:
            JournalUnavailable: there is no answer in time.
            StoreIncompatible: the answer is a refusal.
        """
        server, questions = self._server, [question]
        if server.password is not None:
            user = [server.username.encode()] if server.username else []
            questions.insert(0, (b"AUTH", *user, server.password.encode()))
        try:
            with anyio.fail_after(self._answer_limit_s):
                *signed_in, answer = await self._exchange(address, questions)
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError) as error:
            raise explain(error, sent=False) from error
        if isinstance(answer, Exception):
            # A sentinel that has no password complains of ours, and answers all the same.
            refusals = [error for error in (*signed_in, answer) if isinstance(error, Exception)]
            raise explain(refusals[0], sent=False)
        return answer

    async def _exchange(self, address: Address, questions: Sequence[tuple[bytes, ...]]) -> list[Any]:
        # Without the driver's connection: that greets first, and logs an error where it is cancelled meanwhile.
        parser, answers = Parser(), list[Any]()
        async with await connect_stream(*address, self._tls) as stream:
            await stream.send(b"".join(map(pack_command, questions)))
            while len(answers) < len(questions):
                parser.feed(await stream.receive())
                while not isinstance(response := parser.parse(decode=False), NotEnoughData):
                    answers.append(response[1])
        return answers


def _text(address: Address | None) -> str:
    if address is None:
        return "not found yet"
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
