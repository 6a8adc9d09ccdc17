"""An application in a process of its own: joins the server, writes, reports, and stays until told to leave.

Usage: `python application.py DIRECTORY BACKEND`. Prints one line of JSON once it has joined and written;
leaves gracefully at the end of its standard input.
"""

from __future__ import annotations

import json
import sys

import anyio
import redis

from atomic_actors.journal.embedded._embedded import embedded_server


async def main(directory: str) -> None:
    async with embedded_server(directory) as location:
        with redis.Redis(unix_socket_path=str(location.socket_path)) as client:
            client.incr("written")
        print(json.dumps({"pid": location.pid, "joined": location.joined}), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


anyio.run(main, sys.argv[1], backend=sys.argv[2])
