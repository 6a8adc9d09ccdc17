"""Programs around the package: command line, demo, worker processes, code generation. Imports everything."""

from __future__ import annotations
