"""Rules over a history, and a check of linearizability. Imports the package, no other room of `testing`."""

from __future__ import annotations
