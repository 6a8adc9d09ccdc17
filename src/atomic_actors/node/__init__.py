"""One running node. `_assembly` puts its rooms together; imports everything below `_system`, but not `client`."""

from __future__ import annotations
