"""The two programs of the page on services, as a reader would save and run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, blocks_of


def test_the_two_programs(tmp_path: Path) -> None:
    billing, shop = blocks_of(ROOT / "docs" / "services.md", "py")
    (tmp_path / "billing.py").write_text(billing.text, encoding="utf-8")
    (tmp_path / "shop.py").write_text(shop.text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def run_shop() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "shop.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout.splitlines()

    with subprocess.Popen(
        [sys.executable, "-W", "error", "billing.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "billing is ready\n"
            assert run_shop() == ["100", "120"]
            # The outbox may have stayed behind, and comes with the second run.
            assert run_shop() in (["223", "243"], ["220", "240"], ["220", "243"])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
