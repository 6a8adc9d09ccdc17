"""What is wrong with a command as it is written."""

from __future__ import annotations

__all__ = ("Misused",)


class Misused(Exception):
    """The command cannot mean anything as it is written; the text says what to write."""
