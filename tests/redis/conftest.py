from tests.cluster_servers import redis_cluster, store_cluster, valkey_cluster
from tests.servers import namespace, redis_server, store_server, valkey_server

__all__ = (
    "namespace",
    "redis_cluster",
    "redis_server",
    "store_cluster",
    "store_server",
    "valkey_cluster",
    "valkey_server",
)
