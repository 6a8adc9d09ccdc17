"""Group commit: a journal around a journal, which sends what waits together. Imports `base` and the protocol."""

from __future__ import annotations
