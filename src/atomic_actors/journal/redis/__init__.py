"""The journal in Redis or Valkey: calls, answers, channels. Imports `base` and the protocol in `journal`."""

from __future__ import annotations
