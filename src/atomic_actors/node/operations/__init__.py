"""What operators call: reports, dead letters, handing partitions over. Imports the other rooms of `node`."""

from __future__ import annotations
