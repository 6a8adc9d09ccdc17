"""The conformance suite that every journal passes. Imports `journal` and what is below."""

from __future__ import annotations
