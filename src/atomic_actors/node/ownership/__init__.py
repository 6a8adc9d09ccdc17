"""Who owns which partition, and until when: leases, keeper, peers, placement. Imports `base` and `journal`."""

from __future__ import annotations
