"""The blocking client, for programs without an event loop. Imports `contracts` and what is below, no `node`.

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
