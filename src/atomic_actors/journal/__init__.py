"""Where messages live: the protocol of a journal, and the journals."""

from __future__ import annotations
