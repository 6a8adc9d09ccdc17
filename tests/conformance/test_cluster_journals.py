"""The journal over clusters of Redis and Valkey passes the suite that we ship."""

from __future__ import annotations

import pytest

from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal._redis_cluster import ClusterJournal
from atomic_actors.testing import JournalSuite, Subject
from tests.cluster_servers import Cluster

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
