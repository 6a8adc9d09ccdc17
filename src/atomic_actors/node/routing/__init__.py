"""Where a message goes, and how its answer returns. Imports `contracts` and what is below."""

from __future__ import annotations
