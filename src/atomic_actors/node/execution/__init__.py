"""Entities that are alive here: activations, turns, supervisor. Imports `ownership` and `routing`."""

from __future__ import annotations
