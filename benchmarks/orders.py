"""Orders against a few hot warehouses, in five worker processes: actors, and queues of BullMQ.

Each order deducts its lines from one warehouse's stock. Both sides get the same orders in the same order and
must end with the stock that a plain loop ends with. Time runs from the first order sent to the last one done.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import redis
from attrs import Factory, define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, Query, Refused, handler
from benchmarks._fleet import Child, fleet
from benchmarks._measure import Sample, Settings, WrongTotal

WORKERS = 5
WAREHOUSES = 20
ARTICLES = 50
OPENING_STOCK = 100_000
LINES_MAX = 10
#: The full workload: so many orders hold so many deductions.
ORDERS, DEDUCTIONS = 12_300, 104_004
SEED = 104_004
TELLS_PER_CALL = 1_000
DRAIN_TIMEOUT_S = 170.0

#: Article and quantity.
Line = tuple[str, int]

PEER = Path(__file__).parent / "peers" / "bullmq_orders.cjs"
#: Exact, so that figures of two days are of the same peer.
PEER_PACKAGES = ("bullmq@6.7.0", "ioredis@5")
PEER_CACHE = Path(tempfile.gettempdir()) / "atomic-actors-bench-bullmq-6.7.0"


class OutOfStock(Refused):
    """There is not enough of an article."""


@frozen
class PlaceOrder(Command[int]):
    """Deduct every line, or none."""

    lines: list[Line]


@frozen
class GetStock(Query[dict[str, int]]):
    """What is left of each article."""


@define
class Stock:
    """A warehouse's state."""

    left: dict[str, int] = Factory(lambda: dict.fromkeys(articles(), OPENING_STOCK))
    orders: int = 0


class Warehouse(Actor[Stock], kind="warehouse"):
    """One of the hot entities; its handler counts as one with effects outside the commit."""

    @handler
    async def place(self, message: PlaceOrder) -> int:
        """Deduct."""
        left = self.state.left
        for article, quantity in message.lines:
            if left[article] < quantity:
                raise OutOfStock(f"{article}: {left[article]} left")
        for article, quantity in message.lines:
            left[article] -= quantity
        self.state.orders += 1
        return self.state.orders

    @handler
    async def stock(self, message: GetStock) -> dict[str, int]:
        """Answer."""
        return self.state.left


def articles() -> list[str]:
    """The articles of every warehouse."""
    return [f"SKU-{number}" for number in range(ARTICLES)]


def make_orders(count: int) -> list[tuple[int, list[Line]]]:
    """The orders as (warehouse, lines); of each length the full workload has its share, and the sum is exact."""
    draw = random.Random(SEED)
    surplus = count * LINES_MAX - round(DEDUCTIONS * count / ORDERS)
    lengths = [LINES_MAX] * count
    while surplus:
        at = draw.randrange(count)
        if lengths[at] > 1:
            lengths[at] -= 1
            surplus -= 1
    names = articles()
    return [
        (
            draw.randrange(WAREHOUSES),
            [(name, draw.randint(1, 5)) for name in draw.sample(names, length)],
        )
        for length in lengths
    ]


def stock_after(orders: list[tuple[int, list[Line]]]) -> list[dict[str, int]]:
    """What a plain loop ends with."""
    stocks = [dict.fromkeys(articles(), OPENING_STOCK) for _ in range(WAREHOUSES)]
    for warehouse, lines in orders:
        for article, quantity in lines:
            stocks[warehouse][article] -= quantity
    return stocks


def _check(found: list[dict[str, int]], expected: list[dict[str, int]]) -> None:
    drift = sum(
        abs(stock[name] - right[name]) for stock, right in zip(found, expected, strict=True) for name in right
    )
    if drift:
        raise WrongTotal(f"the stock has drifted by {drift}")


def _sample(orders: list[tuple[int, list[Line]]], messages: int, elapsed_s: float, **more: object) -> Sample:
    deductions = sum(len(lines) for _, lines in orders)
    details = {
        "operations": len(orders),
        "elapsed_s": elapsed_s,
        "messages_per_second": messages / elapsed_s,
        "deductions": deductions,
        "deductions_per_second": deductions / elapsed_s,
        "drift": 0,
        **more,
    }
    return Sample(len(orders) / elapsed_s, details)


async def orders_five_workers(settings: Settings) -> Sample:
    """This process tells the orders, five others own the warehouses; orders a second."""
    orders = make_orders(settings.orders)
    expected = stock_after(orders)
    refs = [Warehouse.ref(f"w-{number}") for number in range(WAREHOUSES)]
    found: list[dict[str, int]] = [{} for _ in refs]

    async def read(system: ActorSystem, number: int) -> None:
        # A query sees what was accepted before it: with its answer, all of this warehouse's orders are done.
        found[number] = await system.ask(refs[number], GetStock(), timeout_s=DRAIN_TIMEOUT_S)

    async with (
        fleet(settings, ["warehouse"], WORKERS) as workers,
        ActorSystem(Config(url=settings.url)) as system,
    ):
        for number in range(WAREHOUSES):
            await read(system, number)
        shares = await workers.settled()
        batch = [(refs[warehouse], PlaceOrder(lines)) for warehouse, lines in orders]
        used_s = workers.cpu_seconds()
        started_s = time.perf_counter()
        for start in range(0, len(batch), TELLS_PER_CALL):
            await system.tell_many(batch[start : start + TELLS_PER_CALL])
        accepted_s = time.perf_counter() - started_s
        async with anyio.create_task_group() as group:
            for number in range(WAREHOUSES):
                group.start_soon(read, system, number)
        elapsed_s = time.perf_counter() - started_s
        used_s = {name: after_s - used_s[name] for name, after_s in workers.cpu_seconds().items()}
    _check(found, expected)
    return _sample(
        orders,
        len(orders) + WAREHOUSES,
        elapsed_s,
        accepted_after_s=accepted_s,
        cpu_us_per_order={name: some_s / len(orders) * 1e6 for name, some_s in used_s.items()},
        partitions_of_each_worker=sorted(shares.values()),
    )


# The peer.


def _install_peer() -> str | None:
    """Have npm fetch the peer once; says why that is not possible, or None."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not on PATH"
    if (PEER_CACHE / "complete").exists():
        return None
    PEER_CACHE.mkdir(parents=True, exist_ok=True)
    (PEER_CACHE / "package.json").write_text('{"name": "peer", "private": true}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PEER_PACKAGES]
    try:
        done = subprocess.run(
            command, cwd=PEER_CACHE, capture_output=True, text=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "npm did not end within two minutes"
    if done.returncode:
        return f"npm install ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
    (PEER_CACHE / "complete").touch()
    return None


@asynccontextmanager
async def _peer_processes(settings: Settings, workload: Path) -> AsyncIterator[list[Child]]:
    """The sender first, then the workers."""
    command = ["node", str(PEER), str(PEER_CACHE), str(settings.port), str(workload)]
    children = [Child.start([*command, "send"])]
    children += [Child.start([*command, "work", str(number), str(WORKERS)]) for number in range(WORKERS)]
    try:
        for child in children:
            await child.expect("ready")
        yield children
    finally:
        for child in children:
            child.kill()


async def orders_bullmq(settings: Settings) -> Sample:
    """The same with a queue of BullMQ for each warehouse: 5 workers on Node, concurrency 1; orders a second.

    Each job reads its warehouse from Redis, checks it, and writes it back: three steps that nothing joins.
    """
    problem = _install_peer()
    if problem is not None:
        return Sample(0.0, {"not_available": problem})
    orders = make_orders(settings.orders)
    expected = stock_after(orders)
    opening = json.dumps(dict.fromkeys(articles(), OPENING_STOCK))
    with (
        tempfile.TemporaryDirectory() as directory,
        redis.Redis("127.0.0.1", settings.port, decode_responses=True) as client,
    ):
        workload = Path(directory) / "orders.json"
        workload.write_text(json.dumps({"warehouses": WAREHOUSES, "orders": orders}))
        for number in range(WAREHOUSES):
            client.set(f"warehouse:{number}", opening)
        async with _peer_processes(settings, workload) as (sender, *workers):
            started_s = time.perf_counter()
            sender.say("go")
            async with anyio.create_task_group() as group:
                for worker in workers:
                    group.start_soon(worker.expect, "done", DRAIN_TIMEOUT_S)
            elapsed_s = time.perf_counter() - started_s
        found = [json.loads(str(client.get(f"warehouse:{number}"))) for number in range(WAREHOUSES)]
    _check(found, expected)
    return _sample(orders, len(orders), elapsed_s)
