"""The same in a Redis Cluster: slots, redirects, a channel per node. Imports `journal.redis`."""

from __future__ import annotations
