"""The ground: errors, ids, settings, the life of a message, events. Imports nothing of ours, no driver, no anyio."""

from __future__ import annotations
