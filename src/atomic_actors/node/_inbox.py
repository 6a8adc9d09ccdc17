"""Frames that other nodes send to this one, each handed to the part of the node that it is for."""

from __future__ import annotations

from attrs import define

from atomic_actors.codec._frames import (
    AskFrame,
    ClaimFrame,
    ForgetFrame,
    Frame,
    ReplyFrame,
    ReportFrame,
    TellFrame,
)
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.routing._router import Router
from atomic_actors.node.volatile._host import VolatileHost
from atomic_actors.node.volatile._routes import VolatileRoutes

__all__ = ("NodeInbox",)


@define(eq=False)
class NodeInbox:
    """Receives frames from the `NodeMessenger`.

    Args:
        replies: knows who waits for a message.
        membership: claims partitions.
        host: runs the volatile messages of other nodes.
        routes: waits for what becomes of volatile messages that this node sent.
    """

    replies: Router
    membership: Membership
    host: VolatileHost
    routes: VolatileRoutes

    def receive(self, frame: Frame) -> None:
        """Handle one frame. What is wrong with its content, beyond its types, raises."""
        match frame:
            case ReplyFrame():
                self.replies.pushed(frame)
            case ReportFrame():
                self.routes.on_report(frame)
            case AskFrame():
                self.host.on_ask(frame)
            case TellFrame():
                self.host.on_tell(frame)
            case ForgetFrame():
                self.host.on_forget(frame)
            case ClaimFrame():
                self.membership.refresh_soon()

    def channel_opened(self) -> None:
        """This node receives frames from now on, so answers can come."""
        self.routes.heard()
