"""`atomic-actors nodes` and `partitions`: who is there, and who owns what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from attrs import asdict
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.text import Text

from atomic_actors._system import ActorSystem
from atomic_actors.node.operations._reports import NodeInfo, PartitionInfo
from atomic_actors.tools.cli._misused import Misused
from atomic_actors.tools.cli._operation import StoreOptions, operate
from atomic_actors.tools.cli._screen import Screen, plain_table, printable

__all__ = ("nodes", "partitions")

DEFAULT_STORE = StoreOptions()

AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")]

nodes = App(
    name="nodes",
    help="Which processes share the store, and how much each one owns.",
    default_parameter=Parameter(negative=()),
)


@nodes.default
def list_nodes(*, as_json: AsJson = False, store: StoreOptions = DEFAULT_STORE) -> int:
    """List the nodes: the processes that share the store, of all services."""
    screen = Screen()

    async def work(system: ActorSystem) -> list[NodeInfo]:
        # This command is a node as well, for as long as it looks.
        return [node for node in await system.nodes() if not node.is_here]

    found = operate(store, screen, work)
    if as_json:
        screen.json([_node_for_machines(node) for node in found])
    elif found:
        _show_nodes(screen, found)
    else:
        screen.say("no nodes")
    return 0


def _node_for_machines(node: NodeInfo) -> dict[str, object]:
    plain = asdict(node)
    del plain["is_here"]
    return plain


def _show_nodes(screen: Screen, found: list[NodeInfo]) -> None:
    table = plain_table("node", "machine", "pid", "service", "state")
    table.add_column("partitions", justify="right")
    table.add_column("kinds")
    table.add_column("release")
    for node in found:
        table.add_row(*_cells(node))
    screen.output.print(table)


def _cells(node: NodeInfo) -> Sequence[Text | str]:
    state = "draining" if node.is_draining else "live" if node.is_live else "gone"
    colour = "yellow" if node.is_draining else "green" if node.is_live else "red"
    return (
        Text(printable(node.node_id), no_wrap=True),
        Text(printable(node.host), overflow="fold"),
        str(node.pid),
        Text(printable(node.service), overflow="fold"),
        Text(state, colour),
        str(node.partitions),
        Text(printable(", ".join(node.kinds)) or "-", overflow="fold"),
        Text(printable(node.release), no_wrap=True),
    )


@nodes.command
def drain(
    node_id: Annotated[
        str | None, Parameter(name="NODE_ID", help="As `atomic-actors nodes` shows it.")
    ] = None,
    /,
    *,
    every: Annotated[bool, Parameter(name="--all", help="Every node that is there now.")] = False,
    timeout: Annotated[
        float, Parameter(validator=Number(gte=0), help="Seconds to wait for it; 0 waits without end.")
    ] = 30.0,
    store: StoreOptions = DEFAULT_STORE,
) -> int:
    """Ask a node to hand over what it owns, and wait until it has."""
    screen = Screen()
    if (node_id is None) != every:
        raise Misused("name the node to drain, as `atomic-actors nodes` shows it, or write --all")

    async def work(system: ActorSystem) -> None:
        with screen.status("waiting until everything is handed over"):
            if node_id is None:
                await system.drain_all(timeout_s=timeout)
            else:
                await system.drain(node_id, timeout_s=timeout)

    operate(store, screen, work)
    screen.say(
        "every node is drained; what is sent waits for the next one that starts"
        if node_id is None
        else f"{node_id} owns nothing any more and takes nothing new; it can be stopped"
    )
    return 0


def partitions(*, as_json: AsJson = False, store: StoreOptions = DEFAULT_STORE) -> int:
    """Show who owns each partition of the service."""
    screen = Screen()

    async def work(system: ActorSystem) -> tuple[list[PartitionInfo], dict[str, NodeInfo]]:
        return await system.partitions(), {node.node_id: node for node in await system.nodes()}

    owners, known = operate(store, screen, work)
    if as_json:
        screen.json([asdict(owner) for owner in owners])
        return 0
    table = plain_table("partition", "owner", "machine", "pid")
    table.add_column("epoch", justify="right")
    for owner in owners:
        node = known.get(owner.node_id)
        table.add_row(
            str(owner.partition),
            Text(printable(owner.node_id) or "no owner", "" if owner.node_id else "red", no_wrap=True),
            Text(printable(node.host) if node is not None else "-", overflow="fold"),
            str(node.pid) if node is not None else "-",
            str(owner.epoch),
        )
    screen.output.print(table)
    free = sum(not owner.node_id for owner in owners)
    if free:
        screen.say(f"\n{free} of {len(owners)} partitions have no owner")
    return 0
