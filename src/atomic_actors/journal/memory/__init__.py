"""The journal in memory, the reference for all others. Imports `base` and the protocol in `journal`."""

from __future__ import annotations
