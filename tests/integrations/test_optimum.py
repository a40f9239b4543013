"""optimum: the command that our wheel adds to its command line, and what its TasksManager knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
from transformers import AutoConfig

from rrt_edge.runtime import Model


def optimum_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`optimum-cli`, which finds the command that was installed with the package."""
    code = f"""
import sys
from optimum.commands.optimum_cli import main
sys.argv = ["optimum-cli", *{list(arguments)!r}]
main()
"""
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)


def test_the_command_exports_a_plain_checkpoint(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    options = ("--loops", "3", "--rank", "4", "--bits", "8", "--kv-bits", "8", "--init", "stepwise")
    done = optimum_cli("export", "rrt", "-m", str(source), str(out), *options)
    assert done.returncode == 0, done.stderr
    with Model.load(out) as model:
        shape = model.manifest.architecture
        assert (shape.loops, shape.rank, shape.kv_bits) == (3, 4, 8)
        assert model.manifest.quantization.bits == 8 and model.manifest.provenance["init"] == "stepwise"


def test_the_command_tells_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    done = optimum_cli("export", "rrt", "-m", str(tmp_path / "nowhere"), str(tmp_path / "bundle"))
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].endswith("nowhere: no such folder")


def test_the_command_is_in_optimums_help() -> None:
    assert "rrt" in optimum_cli("export", "--help").stdout
    assert "--kv-bits" in optimum_cli("export", "rrt", "--help").stdout


def test_the_tasks_manager_knows_the_graph(recursive: Path, bundle: Path) -> None:
    from optimum.exporters.tasks import TasksManager

    import rrt_edge.integrations.optimum  # noqa: F401

    tasks = TasksManager.get_supported_tasks_for_model_type("rrt", "rrt", library_name="transformers")
    config = tasks["text-generation"](AutoConfig.from_pretrained(recursive))
    graph = onnx.load(str(bundle / "model.onnx"), load_external_data=False).graph
    for told, values in ((config.inputs, graph.input), (config.outputs, graph.output)):
        axes = {
            value.name: {
                axis: size.dim_param for axis, size in enumerate(value.type.tensor_type.shape.dim) if size.dim_param
            }
            for value in values
            if not value.name.startswith(("past_key.", "past_value."))
        }
        assert axes == told
