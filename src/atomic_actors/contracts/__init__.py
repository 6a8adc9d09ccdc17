"""What a sender and a kind agree on: checks of a call, what an outcome means. Imports `actors` and what is below."""

from __future__ import annotations
