"""Hypothesis strategies made from messages and contracts. Imports the package, no other room of `testing`."""

from __future__ import annotations
