"""`atomic-actors demo`: a month of flights, a `kill -9` in the middle, and every total right at the end."""

from __future__ import annotations

from atomic_actors.tools.demo._run import run_demo

__all__ = ("run_demo",)
