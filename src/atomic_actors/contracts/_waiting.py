"""How a sender waits: when the store is asked about a late answer, and how long a withdrawal may take."""

from __future__ import annotations

from typing import Final

__all__ = ("POLL_FIRST_REMOTE_S", "POLL_FIRST_S", "POLL_LATER_S", "POLL_MAX_S", "WITHDRAW_LIMIT_S")

#: How long a withdrawal of a cancelled ask may hold the canceller.
WITHDRAW_LIMIT_S: Final = 1.0


#: When the store is first asked about a late answer, and how rarely at the most.
POLL_FIRST_S: Final = 0.5


POLL_FIRST_REMOTE_S: Final = 0.01


POLL_MAX_S: Final = 1.0


#: How much later it is asked about answers of other nodes for each that is waited for: many wait longer, and a
#: question for each of them would take the store's time from the answers.
POLL_LATER_S: Final = 0.005
