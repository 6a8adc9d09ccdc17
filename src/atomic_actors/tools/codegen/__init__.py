"""Writes files that follow from the code. Imports `base`, and the forms of steps in `journal`.

Run it as `python -m atomic_actors.tools.codegen`.
"""

from __future__ import annotations

from atomic_actors.tools.codegen._files import (
    GeneratedFile,
    find_root,
    generated_files,
    stale_files,
    write_files,
)

__all__ = ("GeneratedFile", "find_root", "generated_files", "stale_files", "write_files")
