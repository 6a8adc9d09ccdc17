"""Every target that tries one input from one seed without a store."""

from __future__ import annotations

from typing import Final

from tests.fuzz.answers import ANSWERS, DIRECTORY_ANSWERS
from tests.fuzz.command_line import COMMAND_LINE
from tests.fuzz.decoders import decoder_targets
from tests.fuzz.effort import Target
from tests.fuzz.frames import FRAMES

__all__ = ("TARGETS",)

TARGETS: Final[tuple[Target, ...]] = (*decoder_targets(), ANSWERS, DIRECTORY_ANSWERS, FRAMES, COMMAND_LINE)
