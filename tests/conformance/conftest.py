from __future__ import annotations

from tests.servers import redis_server, valkey_server

__all__ = ("redis_server", "valkey_server")
