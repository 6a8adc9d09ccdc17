from __future__ import annotations

import pytest

from tests.cluster_servers import installed_cluster, redis_cluster, store_cluster, valkey_cluster
from tests.servers import Server, each_server, installed_server, namespace, redis_server, valkey_server

__all__ = (
    "each_server",
    "installed_cluster",
    "installed_server",
    "namespace",
    "redis_cluster",
    "redis_server",
    "store_cluster",
    "valkey_cluster",
    "valkey_server",
)


@pytest.fixture
def store_server(each_server: Server) -> Server:
    """Here, where the servers themselves are tested, the installed one is tested as well."""
    return each_server
