"""The journal behind sentinels, each answer acknowledged by a replica, passes the suite that we ship."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from atomic_actors.base._store_url import parse_store_url
from atomic_actors.journal.redis._journal import RedisJournal
from atomic_actors.journal.redis._replication import Replication
from atomic_actors.journal.redis._sentinel import Primary
from atomic_actors.testing import JournalSuite, Subject
from atomic_actors.testing.journal_suite._probe import OpenProbe, probe_opener
from tests.conformance.modes import SLOW_STORE_MODES
from tests.sentinel_servers import Watched, start_watched

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Generator[Watched]:
    with start_watched("valkey", tmp_path=tmp_path_factory.mktemp("w")) as watched:
        yield watched


@pytest.fixture(scope="session", params=[pytest.param(("asyncio", {}), id="asyncio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Once: what the event loops differ in, the other suites show."""
    return request.param


class TestOverSentinel(JournalSuite):
    @pytest.fixture
    def subject(self, watched: Watched) -> Subject:
        location = parse_store_url(watched.url)[0]
        return Subject(
            lambda settings: RedisJournal(
                Primary(location, warn_asynchronous=False), settings, replication=Replication(1, 1.0)
            )
        )

    @pytest.fixture(params=SLOW_STORE_MODES)
    def open_probe(self, request: pytest.FixtureRequest, subject: Subject) -> OpenProbe:
        return probe_opener(subject, request.param)
