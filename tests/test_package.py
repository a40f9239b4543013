"""The distribution: a wheel that holds all it needs and nothing with a plain name, an sdist of what the wheel is made
of, a demo that answers where nothing but the wheel is installed, imports that stay light."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest

import rrt_edge
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.decoding.exit_policy import POINTS

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


def test_the_sdist_holds_what_the_wheel_is_made_of_and_no_more(packages: Path, wheel: zipfile.ZipFile) -> None:
    (built,) = packages.glob("*.tar.gz")
    with tarfile.open(built) as sdist:
        files = [member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()]
    sources = {"rrt_edge": "rrt_edge", "rrt_edge/runtime": "runtime", "rrt_edge/exporters": "exporters"}
    sources |= {"rrt_edge/web_chat": "samples/web_chat", "optimum/commands/register": "exporters/optimum"}
    expected = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    for name in wheel.namelist():
        place = next((place for place in sorted(sources, key=len, reverse=True) if name.startswith(f"{place}/")), None)
        if place is not None:
            expected.add(f"{sources[place]}/{name.removeprefix(f'{place}/')}")
    assert {name for name in files if not name.startswith("rrt_edge.egg-info/")} == expected


def test_the_wheel_is_small_and_its_demo_whole(packages: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in packages.iterdir()) < 8e6  # both of them
    inside = "rrt_edge/runtime/library/demo/"
    wheel.extractall(tmp_path, [name for name in wheel.namelist() if name.startswith(inside)])
    manifest = Manifest.read(tmp_path / inside)
    manifest.check_hashes(tmp_path / inside)
    assert {path.name for path in (tmp_path / inside).iterdir()} == {*manifest.files, "manifest.json"}
    assert list(manifest.gate.points) == list(POINTS)


@pytest.mark.slow
def test_the_demo_answers_where_the_wheel_alone_is_installed(packages: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    variables = {"base": str(environment), "platbase": str(environment)}
    library = Path(sysconfig.get_path("purelib", "venv", variables))
    (built,) = packages.glob("*.whl")
    install = [sys.executable, "-P", "-m", "pip", "--python", str(scripts / "python"), "install", "-q"]
    subprocess.run([*install, "--no-deps", "--no-index", str(built)], check=True)
    # What it depends on is this environment's; path files in there, which lead to the checkout, are not followed.
    (library / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    home = {**os.environ, "RRT_EDGE_HOME": str(tmp_path / "home")}
    command = [str(scripts / "rrt-edge"), "chat", "demo"]
    question = "What does os.path.join do?\n"
    done = subprocess.run(
        command, cwd=tmp_path, env=home, input=question, capture_output=True, text=True, encoding="utf-8"
    )
    answer = "Join two or more pathname components, inserting '/' as needed."
    assert " ".join(done.stdout.split()) == answer, done.stderr
    listed = subprocess.run([*command[:1], "list", "--json"], cwd=tmp_path, env=home, capture_output=True, check=True)
    (bundle,) = json.loads(listed.stdout)["bundles"]
    assert Path(bundle["folder"]) == library / "rrt_edge" / "runtime" / "library" / "demo"
    assert bundle["name"] == "demo" and bundle["problem"] is None
    refused = subprocess.run([*command[:1], "rm", "demo", "--yes"], cwd=tmp_path, env=home, capture_output=True)
    assert refused.returncode == 2 and b"comes with rrt-edge" in refused.stderr
    shutil.copytree(bundle["folder"], tmp_path / "mine")
    subprocess.run([*command[:1], "pull", "mine", "--name", "demo"], cwd=tmp_path, env=home, check=True)
    listed = subprocess.run([*command[:1], "list", "--json"], cwd=tmp_path, env=home, capture_output=True, check=True)
    assert [Path(bundle["folder"]) for bundle in json.loads(listed.stdout)["bundles"]] == [
        tmp_path / "home" / "bundles" / "demo"
    ]


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
