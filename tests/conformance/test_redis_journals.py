"""The journal over Redis and Valkey passes the suite that we ship, alone and below a group commit."""

from __future__ import annotations

import pytest

from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal.commit._group_commit import GroupCommit
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.testing import JournalSuite, Subject
from atomic_actors.testing.journal_suite._probe import OpenProbe, probe_opener
from tests.conformance.modes import SLOW_STORE_MODES
from tests.servers import KINDS, Server

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def open_redis(server: Server, settings: JournalSettings) -> RedisJournal:
    return RedisJournal.from_url(server.url, settings, allow_no_persistence=True)


class TestOverValkey(JournalSuite):
    @pytest.fixture
    def subject(self, valkey_server: Server) -> Subject:
        return Subject(lambda settings: open_redis(valkey_server, settings))


class TestOverRedis(JournalSuite):
    @pytest.fixture(params=[kind for kind in KINDS if kind != "valkey"])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        server: Server = request.getfixturevalue(f"{request.param}_server")
        return Subject(lambda settings: open_redis(server, settings))

    @pytest.fixture(params=SLOW_STORE_MODES)
    def open_probe(self, request: pytest.FixtureRequest, subject: Subject) -> OpenProbe:
        return probe_opener(subject, request.param)


class TestGroupCommitOverValkey(JournalSuite):
    @pytest.fixture
    def subject(self, valkey_server: Server) -> Subject:
        return Subject(lambda settings: GroupCommit(inner=open_redis(valkey_server, settings)))

    @pytest.fixture(params=SLOW_STORE_MODES)
    def open_probe(self, request: pytest.FixtureRequest, subject: Subject) -> OpenProbe:
        return probe_opener(subject, request.param)
