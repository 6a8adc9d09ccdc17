"""Values to bytes and back, with paths in errors; the envelope. Imports `base`."""

from __future__ import annotations
