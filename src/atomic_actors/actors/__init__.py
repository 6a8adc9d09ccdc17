"""What users declare, and the specs made of it. Imports `base` and `codec`."""

from __future__ import annotations
