"""Where messages live: steps, the protocol of a journal, and the journals. Stores bytes; imports `base` alone."""

from __future__ import annotations
