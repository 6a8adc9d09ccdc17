"""`atomic-actors demo`: a month of flights, survived with every total right. Imports `_system` and what is below."""

from __future__ import annotations

from atomic_actors.tools.demo._run import run_demo

__all__ = ("run_demo",)
