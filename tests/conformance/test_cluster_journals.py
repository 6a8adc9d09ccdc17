"""The journal over clusters of Redis and Valkey passes the suite that we ship."""

from __future__ import annotations

import pytest

from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal.redis.cluster._journal import ClusterJournal
from atomic_actors.testing import JournalSuite, Subject
from atomic_actors.testing.journal_suite._probe import OpenProbe, probe_opener
from tests.cluster_servers import Cluster
from tests.conformance.modes import SLOW_STORE_MODES

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def open_cluster(cluster: Cluster, settings: JournalSettings) -> ClusterJournal:
    return ClusterJournal.from_url(cluster.url, settings, allow_no_persistence=True)


class TestOverClusters(JournalSuite):
    @pytest.fixture
    def subject(self, anyio_backend_name: str, request: pytest.FixtureRequest) -> Subject:
        # The suite is large: one program with asyncio, the other one with Trio.
        kind = "valkey" if anyio_backend_name == "asyncio" else "redis"
        cluster: Cluster = request.getfixturevalue(f"{kind}_cluster")
        return Subject(lambda settings: open_cluster(cluster, settings))

    @pytest.fixture(params=SLOW_STORE_MODES)
    def open_probe(self, request: pytest.FixtureRequest, subject: Subject) -> OpenProbe:
        return probe_opener(subject, request.param)
