"""Simulated clusters in virtual time: nodes, faults, crashes. Imports the package and `checkers`."""

from __future__ import annotations
