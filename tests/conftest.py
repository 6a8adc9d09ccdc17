"""What every test shares: the two event loops, how hard Hypothesis tries, how long a test may hang."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, settings

from tests.server_programs import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown

# Here pytest finds them: they say at the end which servers were used.
__all__ = ("pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown")

# "ci" repeats the same examples in each run, so that a red run is red again on another machine; "soak" draws new
# ones each time; "fast" is for a single file that is run again and again. Choose with `--hypothesis-profile`.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "soak",
    deadline=None,
    max_examples=10_000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("fast", settings.get_profile("ci"), max_examples=10, stateful_step_count=20)
settings.load_profile("ci")


@pytest.fixture(
    scope="session",
    params=[pytest.param(("asyncio", {}), id="asyncio"), pytest.param(("trio", {}), id="trio")],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run each test marked `anyio` once on asyncio and once on Trio."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what pytest has collected: a hundred thousand objects that stay.

    A full collection takes a fifth of a second with them, and on a busy machine long enough for leases to end.
    """
    gc.freeze()


def timeout_of(item: pytest.Item) -> float:
    """The seconds that pytest-timeout gives a test; 0 means no limit."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    option = item.config.getoption("timeout")
    return float(item.config.getini("timeout") or 0 if option is None else option)


def deadline_before(timeout_s: float) -> float:
    """The seconds that leave a cancelled test time to clean up and be reported."""
    return max(timeout_s - 5, timeout_s / 2)


def with_deadline(test: Callable[..., Awaitable[None]], deadline_s: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(**arguments: Any) -> None:
        with anyio.fail_after(deadline_s):
            await test(**arguments)

    return bounded


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Cancel a coroutine test that hangs, a little before pytest-timeout would strike.

    The signal of pytest-timeout leaves the test's task alive in the event loop that all tests share, and
    every later test on asyncio would wait for it. A cancelled test cleans up and disturbs nobody.
    """
    timeout_s = timeout_of(pyfuncitem)
    if timeout_s > 0 and inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = with_deadline(pyfuncitem.obj, deadline_before(timeout_s))
    return (yield)
