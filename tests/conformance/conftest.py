from __future__ import annotations

from tests.cluster_servers import redis_cluster, valkey_cluster
from tests.servers import installed_server, redis_server, valkey_server

__all__ = ("installed_server", "redis_cluster", "redis_server", "valkey_cluster", "valkey_server")
