"""A checkout's root folder is a place to import from, though the package's folders stand beside each other there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_runtime_is_imported_from_the_root_of_a_checkout(tmp_path: Path) -> None:
    code = (
        "import rrt_edge.runtime as ours, rrt_edge.exporters, rrt_edge.web_chat; print(ours.Model.load, ours.__file__)"
    )
    environment = {"PYTHONPATH": "", "PATH": "", "SYSTEMROOT": "", "RRT_EDGE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[-1]) == ROOT / "runtime" / "__init__.py"
