"""`rrt-edge inspect --graph`: inputs and outputs as onnxruntime has them, operators of each subgraph."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from rrt_edge.cli import main
from rrt_edge.cli.inspect import Subgraph, Value, read_graph
from rrt_edge.runtime.system.files import sha256
from tests.conftest import ROOT
from tests.manifests import edit_manifest


def test_inputs_and_outputs_are_those_of_onnxruntime(bundle: Path) -> None:
    contents = json.loads(CliRunner().invoke(main, ["inspect", str(bundle), "--graph", "--json"]).stdout)
    assert set(contents) == {"opsets", "inputs", "outputs", "subgraphs"}
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    for ours, theirs in ((contents["inputs"], session.get_inputs()), (contents["outputs"], session.get_outputs())):
        assert [(value["name"], f"tensor({value['type']})", value["shape"]) for value in ours] == [
            (value.name, value.type, value.shape) for value in theirs
        ]


def test_people_see_values_that_differ_by_numbers_in_one_row_and_the_tree_of_subgraphs(bundle: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(bundle), "--graph"], env={"COLUMNS": "400"})
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "past_key.1.0 .. past_key.8.3 float [batch, 2, past_1 .. past_8, 16]" in lines
    assert "past_length int64 [batch, 8]" in lines and "exit_depth int64 [batch]" in lines
    assert len([line for line in lines if line.startswith("past_")]) == 3
    (depth,) = [line for line in lines if line.startswith("Loop body: depth 1 ")]
    assert "Softmax" not in depth and "RotaryEmbedding\N{MULTIPLICATION SIGN}4" in depth  # one for each layer
    (first,) = [line for line in lines if line.startswith("If then: choice_1 ")]
    assert "Softmax\N{MULTIPLICATION SIGN}4" in first


def test_the_docs_show_what_it_prints_of_the_demo(demo: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(demo), "--graph"], env={"COLUMNS": "400"})
    printed = [" ".join(line.split()) for line in done.stdout.splitlines()]
    excerpt = (ROOT / "docs" / "graph.md").read_text("utf-8").partition("```text\n")[2].partition("```")[0]
    lines = [" ".join(line.split()).removesuffix(" ..") for line in excerpt.splitlines() if re.search(r"\w", line)]
    assert len(lines) == 16
    assert [line for line in lines if not any(other.startswith(line) for other in printed)] == []


def test_graphs_inside_operators_are_counted_by_their_path(tmp_path: Path) -> None:
    branches = """
        then_branch = twice () => (float[N] doubled) { doubled = Add(sum, sum) },
        else_branch = odd () => (float[N] strange) { last = Identity(sum) strange = com.example.Odd(last) }
    """
    text = f"""
        <ir_version: 10, opset_import: ["" : 21, "com.example" : 3]>
        outer (float[N] numbers, bool chosen, float16[2, 3] table) => (float[N] first, float[N] second) {{
            sum = Add(numbers, numbers)
            first = If (chosen) <{branches}>
            second = If (chosen) <{branches}>
        }}
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    contents = read_graph(tmp_path / "model.onnx")
    assert contents.opsets == {"ai.onnx": 21, "com.example": 3}
    assert contents.inputs == [
        Value("numbers", "float", ["N"]), Value("chosen", "bool", []), Value("table", "float16", [2, 3])
    ]  # fmt: skip
    assert [value.name for value in contents.outputs] == ["first", "second"]
    assert sorted(contents.subgraphs, key=lambda part: part.path) == [
        Subgraph([], 1, {"If": 2, "Add": 1}),
        Subgraph(["If else: odd"], 2, {"Identity": 2, "com.example.Odd": 2}),
        Subgraph(["If then: twice"], 2, {"Add": 2}),
    ]


def test_without_onnx_it_says_which_extra_brings_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = CliRunner().invoke(main, ["inspect", str(bundle), "--graph"])
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr == (
        "error: rrt-edge inspect needs onnx, which is not installed: pip install 'rrt-edge[export]'\n"
    )
    assert CliRunner().invoke(main, ["inspect", str(bundle)]).exit_code == 0


def test_a_damaged_graph_is_one_line(bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    graph = damaged / "model.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    done = CliRunner().invoke(main, ["inspect", str(damaged), "--graph"])
    assert done.exit_code == 2 and done.stderr.startswith(f"error: {graph}: its SHA-256 is not the manifest's")
    entry = {"bytes": graph.stat().st_size, "sha256": sha256(graph)}
    edit_manifest(damaged, lambda fields: fields["files"].update({"model.onnx": entry}))
    done = CliRunner().invoke(main, ["inspect", str(damaged), "--graph"])
    assert done.exit_code == 2 and done.stderr.startswith(f"error: {graph}: cannot be read as a graph")


def test_a_verification_of_which_nothing_is_known_is_shown(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copied"))
    edit_manifest(copied, lambda fields: fields.update(verification={}))
    assert CliRunner().invoke(main, ["inspect", str(copied)]).exit_code == 0


def test_merged_adapters_say_what_they_cost_when_exported_and_inspected(
    recursive: Path, bundle: Path, tmp_path: Path
) -> None:
    """And the documentation has every input and output of their graph."""
    where, wide = str(tmp_path / "merged"), {"COLUMNS": "400"}
    exported = (
        CliRunner().invoke(main, ["export", str(recursive), where, "--bits", "32", "--merge-adapters"], env=wide).stdout
    )
    assert "with one block for all depths" in exported
    times = re.search(r"this is ([0-9.]+) times", exported)
    sizes = [sum(path.stat().st_size for path in Path(folder).iterdir()) for folder in (where, bundle)]
    assert times is not None and float(times[1]) == pytest.approx(sizes[0] / sizes[1], rel=0.15)  # fewer graphs
    assert "merged into weights of each depth: " in CliRunner().invoke(main, ["inspect", where], env=wide).stdout
    contents = read_graph(Path(where) / "model.onnx")
    section = (ROOT / "docs" / "graph.md").read_text("utf-8")
    section = section.partition("## The graph of merged adapters")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z_.]+)`", section))
    for value in [*contents.inputs, *contents.outputs]:
        assert re.sub(r"\.\d+", ".l", re.sub(r"\.\d+", ".d", value.name, count=1), count=1) in named


def test_calibration_and_examples_are_shown(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    curve = [
        {"threshold": 0.1, "agreement": 0.875, "mean_depth": 1.0},
        {"threshold": 0.25, "agreement": 0.96875, "mean_depth": 1.5},
        {"threshold": 1.0, "agreement": 1.0, "mean_depth": 3.0},
    ]
    examples = ["What is [bold]this[/x]?", "One\nline \x1b[31m"]

    def change(fields: dict[str, Any]) -> None:
        fields["gate"] |= {"points": {"fast": 0.25}, "curve": curve}
        fields["examples"] = examples
        fields["provenance"]["made with"] = "[/odd]"

    edit_manifest(copy, change)
    done = CliRunner().invoke(main, ["inspect", str(copy)], env={"COLUMNS": "400"})
    lines = [" ".join(re.sub("[│|]", " ", line).split()) for line in done.stdout.splitlines()]
    for line in (
        "operating points fast 0.25",
        "example What is [bold]this[/x]?",
        "example One line \\u001b[31m",
        "provenance: made with [/odd]",
        "threshold as full depth mean depth",
        "0.10000000 87.50% 1.00",
        "0.25000000 96.88% 1.50 fast",
        "1.00000000 100.00% 3.00",
    ):
        assert line in lines, done.stdout
    contents = json.loads(CliRunner().invoke(main, ["inspect", str(copy), "--json"]).stdout)
    assert contents["gate"]["curve"] == curve and contents["examples"] == examples
    plain = CliRunner().invoke(main, ["inspect", str(bundle)]).stdout
    assert "operating points" not in plain and "as full depth" not in plain and "example" not in plain
