"""Who a node is, and whether its process still runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from attrs import frozen

__all__ = ("NodeIdentity",)

#: The nodes of this process that have not ended.
_live_nodes: Final[set[str]] = set()


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _process_start_time(pid: int) -> str:
    """The kernel's start time of a live process; "" where there is none, or no /proc."""
    stat = _read_text(f"/proc/{pid}/stat")
    # The second field is the command in parentheses and may hold anything; the one behind it is the
    # state. A process that its parent has not waited for yet is as dead as one that is gone.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _is_hidden(pid: int) -> bool:
    """Whether a process is there, of another user, of which /proc shows nothing (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@frozen(kw_only=True)
class NodeIdentity:
    """Which process a node is, so that its successors on the same host can tell that it is dead."""

    node_id: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_time: str
    #: How long its own leases last, which others may have set to less; 0 where that is not known.
    lease_ttl_s: float = 0.0

    @classmethod
    def of_this_process(cls, lease_ttl_s: float = 0.0) -> NodeIdentity:
        """A new identity for a node of this process."""
        try:
            pid_namespace = os.readlink("/proc/self/ns/pid")
        except OSError:
            pid_namespace = ""
        pid = os.getpid()
        node_id = os.urandom(8).hex()
        _live_nodes.add(node_id)
        return cls(
            node_id=node_id,
            boot_id=_read_text("/proc/sys/kernel/random/boot_id"),
            pid_namespace=pid_namespace,
            pid=pid,
            start_time=_process_start_time(pid),
            lease_ttl_s=lease_ttl_s,
        )

    def retire(self) -> None:
        """The node has ended, though its process lives on."""
        _live_nodes.discard(self.node_id)

    def encode(self) -> bytes:
        """The form that is stored beside the lease."""
        return json.dumps(
            {
                "node": self.node_id,
                "boot": self.boot_id,
                "pidns": self.pid_namespace,
                "pid": self.pid,
                "start": self.start_time,
                "lease": self.lease_ttl_s,
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> NodeIdentity | None:
        """Read a stored form; None where it is not one (written by another version)."""
        try:
            plain = json.loads(data)
            lease_ttl_s = float(plain.get("lease", 0))
            identity = cls(
                node_id=str(plain["node"]),
                boot_id=str(plain["boot"]),
                pid_namespace=str(plain["pidns"]),
                pid=int(plain["pid"]),
                start_time=str(plain["start"]),
                lease_ttl_s=lease_ttl_s,
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        # An endless or undefined time would keep a lease, and a node, alive without end.
        return identity if 0 <= lease_ttl_s < float("inf") else None

    @classmethod
    def id_in(cls, data: bytes) -> str:
        """The node id in a stored form; "" where there is none that can be read."""
        identity = cls.decode(data)
        return identity.node_id if identity is not None else ""

    def knows_dead(self, other: NodeIdentity) -> bool:
        """Whether `other` was a node of this very host and is certainly gone.

        Only where boot id and pid namespace are known and equal: then its pid is free, or belongs to
        a process that started at another time.
        """
        if not self.boot_id or not self.pid_namespace or not other.start_time:
            return False
        if (self.boot_id, self.pid_namespace) != (other.boot_id, other.pid_namespace):
            return False
        if other.pid == self.pid and other.start_time == self.start_time:
            return other.node_id not in _live_nodes
        start_time = _process_start_time(other.pid)
        return start_time != other.start_time if start_time else not _is_hidden(other.pid)
