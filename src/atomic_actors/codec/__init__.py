"""Values to bytes and back, with paths in errors; the envelope; frames between nodes. Imports `base`."""

from __future__ import annotations
