"""The servers that fuzzing needs."""

from __future__ import annotations

from tests.servers import valkey_server

__all__ = ("valkey_server",)
