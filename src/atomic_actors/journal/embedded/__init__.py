"""The private server: launched, joined, kept running. Imports `base` alone."""

from __future__ import annotations
