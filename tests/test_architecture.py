"""The walls between the rooms: the import contracts hold on the installed package, and fail on a wrong arrow."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("rrt_edge", "rrt_edge.runtime", "rrt_edge.exporters")


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts on the package that lies in a folder, which the linter takes from where it is started."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    command += ["--no-cache", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the installed package in one folder."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        target, ignored = tmp_path.joinpath(*package.split(".")), shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(spec.origin).parent, target, ignore=ignored, dirs_exist_ok=True)
    return tmp_path


def test_the_contracts_hold(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arrow", "contract"),
    [
        ("model/lora.py", "from rrt_edge.exporters import spec", "the house"),
        ("runtime/decoding/decoder.py", "import rrt_edge.runtime.session", "the runtime's floors"),
        ("runtime/running/kv_budget.py", "import rrt_edge.runtime.running.cpu", "no circles"),
        ("runtime/system/files.py", "import torch", "the runtime runs without torch"),
        ("quantisation/blocks.py", "import torch", "quantisation is numpy alone"),
        ("training/data.py", "import rrt_edge.runtime.bundle.manifest", "what the torch side may take"),
        ("exporters/bundle.py", "import rrt_edge.runtime.running.runner", "what the exporters may take"),
        ("cli/generate.py", "import rrt_edge.runtime.decoding.decoder", "commands and integrations"),
    ],
)
def test_a_wrong_arrow_breaks_its_contract(tree: Path, module: str, arrow: str, contract: str) -> None:
    path = tree / "rrt_edge" / module
    path.write_text(path.read_text("utf-8").replace("\nfrom __future__", f"\n{arrow}\nfrom __future__", 1), "utf-8")
    done = lint_imports(tree)
    verdict = re.search(re.escape(contract) + r".*?\b(KEPT|BROKEN)\b", " ".join(done.stdout.split()))
    assert done.returncode == 1 and verdict is not None and verdict[1] == "BROKEN", done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("room", ["model", "conversion", "training", "quantisation"])
def test_the_torch_side_loads_no_onnxruntime(room: str) -> None:
    code = f"import sys, rrt_edge.{room}; from importlib import import_module; import pkgutil\n"
    code += f"for module in pkgutil.iter_modules(rrt_edge.{room}.__path__): "
    code += f"import_module('rrt_edge.{room}.' + module.name)\n"
    code += "sys.exit('onnxruntime is loaded' if 'onnxruntime' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
