"""The rows: what each measures, the floor it is held against and its target.

Imports nothing of the runtime: the parent process needs only these names.
"""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

BACKENDS: Final = ("asyncio", "trio", "uvloop")


@frozen
class Target:
    """The value or the ratio to the floor, and which side of the limit is good."""

    of: Literal["ratio", "value"]
    good: Literal["at least", "below"]
    limit: float

    def met(self, figure: float) -> bool:
        """Whether the figure is on the good side."""
        return figure >= self.limit if self.good == "at least" else figure < self.limit


@frozen
class Row:
    """One line of the table.

    Args:
        floors: samples to alternate with; the one with the best median counts. Empty: an absolute target.
        higher_is_better: True for rates, False for times and sizes.
        default: measured unless `--rows` says otherwise.
        also: a second target that has to be met, too.
        once: one sample instead of the usual repeats, because it takes minutes, or repeats by itself: then it
            lists its `values`.
        server: which of the two servers it is measured against.
        peer: whether the floor is other people's software, which may not be there; then the row stands alone.
    """

    name: str
    title: str
    unit: str
    target: Target
    floors: tuple[str, ...] = ()
    floor_title: str = "none"
    higher_is_better: bool = True
    backends: tuple[str, ...] = ("asyncio", "trio")
    default: bool = True
    once: bool = False
    also: Target | None = None
    server: Literal["valkey", "redis"] = "valkey"
    peer: bool = False


_ROWS: Final = (
    Row(
        "durable_asks",
        "Durable asks, each waits for its reply; outcome and state committed; 100 clients, 100 entities; "
        "TCP server, AOF everysec",
        "per second",
        Target("ratio", "at least", 1.0),
        floors=("counters_pool_1", "counters_pool_10", "counters_pool_100"),
        floor_title="one awaited Lua counter increment per request with coredis, 100 concurrent, "
        "the fastest of pool sizes 1, 10, 100",
        backends=BACKENDS,
    ),
    Row(
        "one_client",
        "Durable ask, one client: median time",
        "ms",
        Target("ratio", "below", 2.5),
        floors=("counter_latency",),
        floor_title="the bare store round trip: one Lua counter increment, one client, median time",
        higher_is_better=False,
    ),
    Row(
        "hot_entity",
        "One hot entity: 100 clients, 1 entity, effectful handler",
        "per second",
        Target("ratio", "at least", 0.7),
        floors=("counter_sequential_rate",),
        floor_title="the sequential round-trip rate of the store: one Lua counter increment after the other",
    ),
    Row(
        "hot_entity_transactional",
        "One hot entity: 100 clients, 1 entity, transactional handler",
        "per second",
        Target("ratio", "at least", 5.0),
        floors=("hot_entity",),
        floor_title="the same with an effectful handler",
    ),
    Row(
        "volatile_asks",
        "Volatile asks: 100 clients, 100 entities, `durable=False`",
        "per second",
        Target("ratio", "at least", 0.6),
        floors=("stream_round_trips",),
        floor_title="the raw anyio round trip: a memory object stream to a worker task, an anyio Event back, "
        "100 clients, 100 workers",
        backends=BACKENDS,
    ),
    Row(
        "tell_and_drain",
        "Tell and drain: 20,000 messages over 1,000 entities, until all are committed",
        "per second",
        Target("value", "at least", 12_000),
    ),
    Row(
        "million_entities",
        "1,000,000 entities touched in one process: peak resident memory",
        "MiB",
        Target("value", "below", 1024),
        higher_is_better=False,
        default=False,
        once=True,
    ),
    Row(
        "orders_five_workers",
        "12,300 orders against 20 warehouses in five worker processes, 104,004 deductions, effectful handler, until "
        "all are committed; no drift; redis-server, AOF everysec",
        "per second",
        Target("ratio", "at least", 2.0),
        floors=("orders_bullmq",),
        floor_title="the same orders by a BullMQ queue for each warehouse on Node, five workers, concurrency 1, each "
        "order a GET, a check and a SET; sent with addBulk",
        also=Target("value", "at least", 3_340),
        server="redis",
        peer=True,
    ),
    Row(
        "takeover_strangers",
        "`kill -9` of one of three workers until each of 50 entities has answered again, as on different machines, "
        "lease 2 s; no message lost; median of the kills",
        "s",
        Target("value", "below", 3.0),
        higher_is_better=False,
        once=True,
    ),
    Row(
        "takeover_same_host",
        "The same on one host, where the others can see that the process is dead",
        "s",
        Target("value", "below", 0.5),
        higher_is_better=False,
        once=True,
    ),
    Row(
        "graceful_stop",
        "SIGTERM to one of three workers under load: the longest of the asks of 50 entities; none fails",
        "ms",
        Target("value", "below", 300),
        higher_is_better=False,
        once=True,
    ),
    Row(
        "join",
        "A third worker joins under load and takes its share: the longest of the asks of 50 entities; none fails",
        "ms",
        Target("value", "below", 500),
        higher_is_better=False,
        once=True,
    ),
    Row(
        "remote_ask",
        "Durable ask of an entity in another process, one client: median time",
        "ms",
        Target("ratio", "below", 4.0),
        floors=("counter_latency",),
        floor_title="the bare store round trip: one Lua counter increment, one client, median time",
        higher_is_better=False,
    ),
    Row(
        "two_processes",
        "Durable asks to 100 entities in two worker processes, 100 clients in two other processes",
        "per second",
        Target("ratio", "at least", 0.85),
        floors=("one_process",),
        floor_title="the same with one worker process",
    ),
)

ROWS: Final = {row.name: row for row in _ROWS}
NAMES: Final = tuple(ROWS)
#: Floors that take the runtime, or processes of their own.
OTHER_FLOORS: Final = ("orders_bullmq", "one_process")
