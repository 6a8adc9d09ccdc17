"""The types that users see, as mypy and pyright read them.

The files in `cases` are checked and never run. A line that must be right says so with `assert_type`. A line
that must be wrong carries both `# type: ignore[code]` (mypy) and `# pyright: ignore[rule]`; both checkers
report a comment that silences nothing, so such a line fails when it becomes right.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CASES = HERE / "cases"

pytestmark = pytest.mark.timeout(240)


def mypy(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def pyright(project: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", str(project)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_there_are_cases() -> None:
    assert [path for path in CASES.glob("*.py") if path.name != "__init__.py"], f"no case in {CASES}"


def test_mypy_accepts_the_cases() -> None:
    done = mypy(CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_accepts_the_cases() -> None:
    done = pyright(HERE)
    assert done.returncode == 0, done.stdout + done.stderr


WRONG = """\
from typing import assert_type

from atomic_actors.base._records import EntityRef

assert_type(EntityRef("account", "a-42").id, int)
unsilenced: int = 1  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
"""


@pytest.fixture
def wrong_project(tmp_path: Path) -> Path:
    """A project like this one with one case, wrong on its last two lines."""
    config = (HERE / "pyrightconfig.json").read_text(encoding="utf-8")
    source = (ROOT / "src").as_posix()
    (tmp_path / "pyrightconfig.json").write_text(config.replace("../../src", source), encoding="utf-8")
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "wrong.py").write_text(WRONG, encoding="utf-8")
    return tmp_path


def test_mypy_sees_a_wrong_case(wrong_project: Path) -> None:
    done = mypy(wrong_project / "cases")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "[assert-type]" in done.stdout
    assert "[unused-ignore]" in done.stdout


def test_pyright_sees_a_wrong_case(wrong_project: Path) -> None:
    done = pyright(wrong_project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "reportAssertTypeFailure" in done.stdout
    assert "reportUnnecessaryTypeIgnoreComment" in done.stdout
