"""The blocking client: sends to entities from programs without an event loop.

from atomic_actors.client import Client

with Client("redis://localhost:6379/0") as client:
client.tell(Account.ref("a-42"), Deposit(10))
client.ask(Account.ref("a-42"), GetBalance(), timeout_s=5)
"""

from __future__ import annotations

from atomic_actors.base._public_names import set_public_modules
from atomic_actors.client._client import Client

__all__ = ("Client",)

set_public_modules(__name__, globals(), __all__)
del set_public_modules
