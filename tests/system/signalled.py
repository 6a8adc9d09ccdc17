"""An application in a process of its own that leaves at a signal.

Usage: `python -m tests.system.signalled URL NAMESPACE BACKEND`. Its one turn lasts until its standard input has a
line. It prints what happens to it, a line each.
"""

from __future__ import annotations

import sys

import anyio
from attrs import frozen

from atomic_actors import Actor, ActorSystem, Command, Config, handler


@frozen
class Wait(Command[str]):
    pass


class Waiter(Actor, kind="waiter"):
    @handler
    async def wait(self, message: Wait) -> str:
        print("turn began", flush=True)
        try:
            await anyio.wait_readable(sys.stdin)
        except BaseException:
            print("turn cut", flush=True)
            raise
        print("turn ended", flush=True)
        return "waited"


WAITER = Waiter.ref("one")


def config(url: str, namespace: str) -> Config:
    return Config(
        url=url,
        namespace=namespace,
        actors=[Waiter],
        partitions=1,
        drain_timeout_s=0,
        handle_signals=True,
        allow_no_persistence=True,
    )


async def main(url: str, namespace: str) -> None:
    async with ActorSystem(config(url, namespace)) as system:
        print((await system.tell(WAITER, Wait())).message_id, flush=True)
        try:
            await anyio.sleep_forever()
        finally:
            print("body cancelled", flush=True)
    print("left", flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend=sys.argv[3])
