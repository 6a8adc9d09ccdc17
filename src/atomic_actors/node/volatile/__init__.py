"""Kinds without a journal: their activations, and messages to and from other nodes. Imports `execution`."""

from __future__ import annotations
