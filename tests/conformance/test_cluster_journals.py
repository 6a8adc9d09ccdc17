"""The journal over clusters of Redis and Valkey passes the suite that we ship, alone and below its group commit."""

from __future__ import annotations

import pytest

from atomic_actors.journal._protocol import JournalSettings
from atomic_actors.journal._redis_cluster import ClusterJournal
from atomic_actors.testing import JournalSuite, Subject
from tests.cluster_servers import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def open_cluster(cluster: Cluster, settings: JournalSettings) -> ClusterJournal:
    return ClusterJournal.from_url(cluster.url, settings, allow_no_persistence=True)


class TestOverValkeyCluster(JournalSuite):
    @pytest.fixture
    def subject(self, valkey_cluster: Cluster) -> Subject:
        return Subject(lambda settings: open_cluster(valkey_cluster, settings))


class TestOverRedisCluster(JournalSuite):
    @pytest.fixture
    def subject(self, redis_cluster: Cluster) -> Subject:
        return Subject(lambda settings: open_cluster(redis_cluster, settings))
