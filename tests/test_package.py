"""The distribution: a wheel that holds all it needs and nothing with a plain name, imports that stay light."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest

import rrt_edge

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_holds_every_module_under_rrt_edge(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder, package in (
        ("rrt_edge", "rrt_edge"),
        ("runtime", "rrt_edge/runtime"),
        ("exporters", "rrt_edge/exporters"),
        ("samples/web_chat", "rrt_edge/web_chat"),
    ):
        for module in (ROOT / folder).rglob("*.py"):
            inside = module.relative_to(ROOT / folder).as_posix()
            assert f"{package}/{inside}" in names or inside.startswith("optimum/")
    assert {"rrt_edge/py.typed", "rrt_edge/web_chat/index.html"} <= names
    others = {
        name for name in names if name.split("/")[0] not in ("rrt_edge", f"rrt_edge-{rrt_edge.__version__}.dist-info")
    }
    assert others == {"optimum/commands/register/register_rrt.py"}  # optimum's namespace: no __init__.py


def test_the_wheel_asks_for_nothing_heavy(wheel: zipfile.ZipFile) -> None:
    information = f"rrt_edge-{rrt_edge.__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{information}/METADATA").decode())
    plain = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {line.split(">")[0].strip() for line in plain}
    assert names == {
        "numpy", "onnxruntime", "tokenizers", "jinja2", "click", "rich",
        "safetensors", "platformdirs", "prompt_toolkit", "huggingface_hub", "markdown-it-py", "packaging", "psutil",
    }  # fmt: skip
    entries = wheel.read(f"{information}/entry_points.txt").decode()
    assert "rrt-edge = rrt_edge.cli:main" in entries and "rrt-edge = rrt_edge.integrations.llm" in entries


def test_the_package_under_test_is_the_installed_one() -> None:
    installed = distribution("rrt-edge")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    expected = ROOT / "rrt_edge" if editable else Path(str(installed.locate_file("rrt_edge")))
    assert Path(rrt_edge.__file__).resolve().parent == expected.resolve()


@pytest.mark.parametrize(
    "statement",
    [
        "import rrt_edge",
        "import rrt_edge.cli",
        "from rrt_edge.runtime import *",
        "from rrt_edge.runtime import Model, Sampling; import rrt_edge.runtime.check",
    ],
)
def test_the_runtime_imports_no_training_libraries(statement: str) -> None:
    heavy = "[n for n in ('torch', 'transformers', 'onnx', 'optimum') if n in sys.modules]"
    code = f"import sys; {statement}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    code = """
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
import rrt_edge.runtime
assert "onnxruntime" not in sys.modules
class Watch:
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print("telemetry off" if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" else "telemetry on")
sys.meta_path.insert(0, Watch())
rrt_edge.runtime.Model
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "telemetry off", done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import transformers.models.llama.modeling_llama",
        "from transformers import AutoConfig",
        "from transformers import AutoModelForCausalLM",
        "import transformers",
        "pass",
    ],
)
@pytest.mark.parametrize("ours_comes", ["before", "after"])
def test_importing_rrt_edge_registers_its_model_in_any_order(recursive: Path, first: str, ours_comes: str) -> None:
    imports = f"import rrt_edge; {first}" if ours_comes == "before" else f"{first}; import rrt_edge"
    code = f"""
{imports}
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained(r"{recursive}")).__name__)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "RecursiveForCausalLM", done.stderr
