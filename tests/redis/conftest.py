from tests.servers import namespace, redis_server, store_server, valkey_server

__all__ = ("namespace", "redis_server", "store_server", "valkey_server")
