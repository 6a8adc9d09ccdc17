"""Which of the probe's modes the slow stores go through."""

from __future__ import annotations

import os

from atomic_actors.testing.journal_suite._probe import MODES

#: The steps are the same Lua that single servers go through in every mode. What these stores add is on the way there
#: and back, and a step that is sent again after its answer was lost shows it best.
SLOW_STORE_MODES = MODES if os.environ.get("AA_TESTS_ALL_MODES") == "1" else ("lost",)
