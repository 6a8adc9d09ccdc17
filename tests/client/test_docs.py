"""The page of the client, as a reader would follow it; and an application of the kind that it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atomic_actors import NotExecuted
from atomic_actors.client import Client
from tests.client.till import Add, Overdrawn, Refuse, till
from tests.docs.pages import ROOT, blocks_of, promised_output

PAGE = ROOT / "docs" / "client.md"

# Flask: each file is a reader's; the test client of Flask stands for the browser.
USE_FLASK = """
from shop import app, client
browser = app.test_client()
key = {"Idempotency-Key": "k"}
for _ in range(2):
    assert browser.post("/accounts/b/deposits", json={"amount": 5}, headers=key).get_json() == {"balance": 5}
answer = browser.post("/accounts/b/withdrawals", json={"amount": 50})
assert (answer.status_code, answer.get_json()["balance"]) == (409, 5), answer
assert browser.get("/accounts/b").get_json() == {"balance": 5}
client.close()
"""

USE_DJANGO = """
import django
from django.conf import settings
from django.urls import path
settings.configure(DEBUG=True, ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"])
django.setup()
from bank import views
import types, sys
urls = types.ModuleType("urls")
urls.urlpatterns = [path("<account_id>", views.balance), path("<account_id>/deposits", views.deposit)]
sys.modules["urls"] = urls
from django.test import Client
browser = Client()
answer = browser.post("/c/deposits", '{"amount": 7}', content_type="application/json")
assert answer.json() == {"balance": 7}, answer
assert browser.get("/c").json() == {"balance": 7}
from bank.actors import client
client.close()
"""


@contextmanager
def followed(directory: Path) -> Generator[Callable[..., str]]:
    """The page's files, with the worker running; gives the function that runs Python beside it."""
    accounts, worker, script, flask, actors, views = blocks_of(PAGE, "py")
    (directory / "bank").mkdir()
    for name, block in (
        ("accounts.py", accounts),
        ("worker.py", worker),
        ("script.py", script),
        ("shop.py", flask),
        ("bank/actors.py", actors),
        ("bank/views.py", views),
    ):
        (directory / name).write_text(block.text, encoding="utf-8")
    source = os.pathsep.join([str(ROOT / "src"), str(directory), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": source}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    running = subprocess.Popen([sys.executable, "worker.py"], cwd=directory, env=environment)
    try:
        deadline_s = time.monotonic() + 30
        while not (directory / ".atomic-actors" / "server.sock").exists():
            assert running.poll() is None
            assert time.monotonic() < deadline_s, "the worker did not start"
            time.sleep(0.05)
        yield run
    finally:
        running.terminate()
        running.wait(20)


def test_the_page(tmp_path: Path) -> None:
    with followed(tmp_path) as run:
        assert run("script.py").splitlines() == promised_output(blocks_of(PAGE, "py"))


@pytest.mark.parametrize("program", [USE_FLASK, USE_DJANGO], ids=["flask", "django"])
def test_the_frameworks(program: str, tmp_path: Path) -> None:
    with followed(tmp_path) as run:
        run("-c", program)


# The same without a framework: what a web server calls, from its threads.

StartResponse = Callable[[str, list[tuple[str, str]]], object]


def make_application(client: Client) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        till_id = environ["PATH_INFO"].strip("/")
        try:
            if environ["REQUEST_METHOD"] == "POST":
                status, total = "200 OK", client.ask(till(till_id), Add(1), key=environ.get("HTTP_KEY"))
            else:
                status, total = "200 OK", client.ask(till(till_id), Refuse(3)) or 0
        except Overdrawn as refused:
            status, total = "409 Conflict", refused.balance
        except NotExecuted:
            status, total = "503 Service Unavailable", -1
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(total).encode()]

    return application


@pytest.mark.redis
def test_a_web_application(worker: object, client: Client) -> None:
    application = make_application(client)

    def call(method: str, path: str, **headers: str) -> tuple[str, Any]:
        seen: list[str] = []

        def start_response(status: str, _: list[tuple[str, str]]) -> None:
            seen.append(status)

        body = b"".join(application({"REQUEST_METHOD": method, "PATH_INFO": path, **headers}, start_response))
        return seen[0], json.loads(body)

    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(lambda _: call("POST", "/a"), range(40)))
    assert sorted(total for _, total in answers) == list(range(1, 41))
    assert call("POST", "/a", HTTP_KEY="k") == call("POST", "/a", HTTP_KEY="k") == ("200 OK", 41)
    assert call("GET", "/a") == ("409 Conflict", 3)
    client.close()
