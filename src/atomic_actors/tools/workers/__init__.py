"""Worker processes of one system: started, watched, restarted, reloaded. Imports `_system` and what is below.

    Manager         the parent: slots, back-off, reload, stop         (_manager)
    └─ Child        one worker process as its parent sees it          (_child)
       ⇅ a socket pair: reports go up; its end tells that the other side is gone   (_reports)
    worker          the child: loads the system, enters it, serves    (worker)
    └─ _target      finds what `package.module:system` names

No process of these outlives its parent: a worker whose parent is gone leaves in good order, and ends
itself by force if that takes too long.
"""

from __future__ import annotations

from atomic_actors.tools.workers._manager import Manager, Observer, Phase, WorkerSettings, WorkerStatus

__all__ = ("Manager", "Observer", "Phase", "WorkerSettings", "WorkerStatus")
