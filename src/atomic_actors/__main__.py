"""`python -m atomic_actors` is the command `atomic-actors`."""

from __future__ import annotations

import sys

from atomic_actors.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
