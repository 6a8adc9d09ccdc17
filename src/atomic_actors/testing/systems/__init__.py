"""Systems and servers for tests, and the state machine. Imports every other room of `testing`."""

from __future__ import annotations
