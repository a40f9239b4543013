"""`doctor`, run as a program: what it tells, and that each thing wrong comes with its remedy and status 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rrt_edge.cli.extras import FOR_CONTRIBUTORS, extra_with, extras
from tests.conftest import ROOT

PROGRAM = "from rrt_edge.cli import main; main(prog_name='rrt-edge')"


def doctor(home: Path, *arguments: object, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it; `before` is run first in the same process."""
    cleared = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(
        [sys.executable, "-P", "-c", f"{before}\n{PROGRAM}", "doctor", *map(str, arguments)],
        env={**cleared, "RRT_EDGE_HOME": str(home), "COLUMNS": "400", "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_a_healthy_installation(bundle: Path, tmp_path: Path) -> None:
    done = doctor(tmp_path, bundle, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == "" and found["ok"] and found["problems"] == []
    sections = ["versions", "extras", "machine", "onnxruntime", "threads", "bundles", "bundle"]
    assert list(found) == ["ok", *sections, "notes", "problems"]
    for name in ("onnxruntime", "numpy", "tokenizers"):
        assert found["versions"][name] == version(name)
    assert found["extras"]["export"]["torch"] == version("torch")
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"] and found["onnxruntime"]["telemetry_off"]
    assert found["bundles"]["folder"] == str(tmp_path / "bundles") and found["bundles"]["free_bytes"] > 0
    assert found["bundle"]["hashes_ok"] and found["bundle"]["token_seconds"] > 0
    shown = doctor(tmp_path, bundle)
    assert shown.returncode == 0 and shown.stdout.rstrip().endswith("all is well")
    assert f"torch {version('torch')}" in shown.stdout and "telemetry off" in shown.stdout
    assert not (tmp_path / "bundles").exists()


def test_the_extras_are_those_of_pyproject() -> None:
    """Without what is there anyway."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    always = {Requirement(line).name for line in project["dependencies"]}
    assert set(extras()) == set(project["optional-dependencies"]) - set(FOR_CONTRIBUTORS)
    for extra, names in extras().items():
        asked = {Requirement(line).name for line in project["optional-dependencies"][extra]}
        assert asked - {"rrt-edge"} - always == set(names)
    modules = {
        "torch": "export",
        "yaml": "train",
        "prometheus_client": "serve",
        "llm": "llm",
        "numpy": None,
        "os": None,
    }
    assert {module: extra_with(module) for module in modules} == modules


def test_telemetry_that_the_environment_turns_on_is_a_problem(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", ORT_DISABLE_TELEMETRY="0")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["ok"] and found["onnxruntime"]["telemetry_off"] is False
    assert [set(problem) for problem in found["problems"]] == [{"what", "remedy"}]
    assert "ORT_DISABLE_TELEMETRY is '0'" in found["problems"][0]["what"] and "unset" in found["problems"][0]["remedy"]


@pytest.mark.slow
def test_damaged_bundles_are_problems_once_each(bundle: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(bundle, tmp_path / "bundles" / "cut"))
    (cut / "model.onnx").write_bytes(b"cut")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "x.partial").write_bytes(bytes(1000))
    for arguments in ((), ("cut",)):
        done = doctor(tmp_path, *arguments)
        problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
        assert done.returncode == 1 and len(problems) == 1 and "all is well" not in done.stdout
        assert f"{cut / 'model.onnx'}: 3 bytes, the manifest says" in problems[0] and "again" in problems[0]
        assert "keeps unfinished downloads" in done.stdout
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    (changed / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1] + b"\xff")
    found = json.loads(doctor(tmp_path, changed, "--json").stdout)
    assert not found["bundle"]["hashes_ok"] and "its SHA-256 is not the manifest's" in found["problems"][-1]["what"]


def test_a_bundle_whose_graph_does_not_load_does_not_run(bundle: Path, tmp_path: Path) -> None:
    from rrt_edge.runtime.bundle.manifest import Manifest, list_files

    wrong = Path(shutil.copytree(bundle, tmp_path / "wrong"))
    (wrong / "block.onnx").write_bytes(b"not a graph")
    manifest = Manifest.read(wrong)
    manifest.files.update(list_files(wrong))
    manifest.write(wrong)
    done = doctor(tmp_path, wrong, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["bundle"]["hashes_ok"]
    assert "does not run" in found["problems"][0]["what"] and "rrt-edge verify" in found["problems"][0]["remedy"]


def test_an_onnxruntime_that_does_not_load_is_told_and_not_a_traceback(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", before="import sys; sys.modules['onnxruntime'] = None")
    problems = json.loads(done.stdout)["problems"]
    assert done.returncode == 1 and len(problems) == 1
    assert "onnxruntime cannot be imported" in problems[0]["what"] and "onnxruntime" in problems[0]["remedy"]


PACKAGES = """
import importlib.metadata as metadata
there = metadata.version
def version(name):
    if name in {absent!r}:
        raise metadata.PackageNotFoundError(name)
    return {changed!r}.get(name) or there(name)
metadata.version = version
"""


def test_missing_and_old_packages_come_with_the_command_that_brings_them(tmp_path: Path) -> None:
    """As on a machine where the runtime alone was installed, and parts of it grew old."""
    absent = ["torch", "onnx", "llguidance", "jinja2"]
    changed = {"onnxruntime": "1.20.0", "transformers": "4.40.0", "onnxruntime-gpu": "1.30.0"}
    before = PACKAGES.format(absent=absent, changed=changed)
    done = doctor(tmp_path, before=before)
    assert done.returncode == 1
    assert "missing torch, onnx (pip install 'rrt-edge[export]')" in done.stdout
    assert "missing llguidance (pip install 'rrt-edge[schema]')" in done.stdout
    told = {line.removeprefix("problem: ") for line in done.stdout.splitlines() if line.startswith("problem: ")}
    assert "jinja2 is not installed; pip install --upgrade 'jinja2>=3.1.6'" in told
    assert "onnxruntime 1.20.0 is too old; pip install --upgrade 'onnxruntime>=1.29'" in told
    assert "transformers 4.40.0 is too old; pip install --upgrade 'rrt-edge[export]'" in told
    assert any("onnxruntime and onnxruntime-gpu are both installed" in line for line in told) and len(told) == 4


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_home_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    problems = json.loads(doctor(tmp_path / "home", "--json").stdout)["problems"]
    tmp_path.chmod(0o755)
    assert "cannot be written" in problems[0]["what"] and "RRT_EDGE_HOME" in problems[0]["remedy"]


def test_a_home_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    done = doctor(tmp_path / "home", "--json")
    assert done.returncode == 1 and "cannot be written" in json.loads(done.stdout)["problems"][0]["what"]


def test_a_bundle_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    done = doctor(tmp_path, "nothing")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "nothing: no such bundle folder, and no such bundle is installed" in done.stderr
