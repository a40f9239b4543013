"""Graphs that somebody hostile made: other shapes than they declare, and loops without an end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrt_edge.runtime import BadInputError, BundleError, Model, RRTEdgeError
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.check import check, try_token
from rrt_edge.runtime.running.opening import open_on
from rrt_edge.runtime.system.deadlines import DEADLINES
from rrt_edge.runtime.system.files import sha256
from tests.conftest import PREBUILT
from tests.manifests import edit_manifest

onnx = pytest.importorskip("onnx")
OUTPUTS = ("logits", "hidden_out", "gate", "exit_depth", "new_key", "new_value")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PREBUILT, tmp_path / "bundle"))


@pytest.fixture(params=["model.onnx", "block.onnx"])
def graph(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def with_graph(bundle: Path, change: Callable[[Any], None], name: str = "model.onnx") -> None:
    """Let `change` work on a graph, and the manifest say the hash of what it makes; the loop graph becomes the one that
    runs."""
    path = bundle / name
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)
    entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    edit_manifest(bundle, lambda fields: fields["files"][name].update(entry))
    if name == "model.onnx":
        (bundle / "block.onnx").unlink()
        edit_manifest(bundle, lambda fields: fields["files"].pop("block.onnx"))


def renamed(graph: Any, name: str) -> None:
    """Call what makes an output otherwise; its declared shape goes, for onnxruntime compares that."""
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = f"{name}.inner"
        for index, entering in enumerate(node.input):
            if entering == name:
                node.input[index] = f"{name}.inner"


def doubled(name: str, axis: int) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        renamed(graph, name)
        graph.node.append(onnx.helper.make_node("Concat", [f"{name}.inner"] * 2, [name], axis=axis))
        for output in graph.output:
            if output.name == name:
                output.type.tensor_type.ClearField("shape")

    return change


def endless(graph: Any) -> None:
    """Before anything else comes a loop of 2^60 turns, whose result is no part of the rest."""
    helper, kinds = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"]),
            helper.make_node("Mul", ["value", "value"], ["value_out"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", kinds.INT64, []),
            helper.make_tensor_value_info("going", kinds.BOOL, []),
            helper.make_tensor_value_info("value", kinds.INT64, []),
        ],
        [
            helper.make_tensor_value_info("going_on", kinds.BOOL, []),
            helper.make_tensor_value_info("value_out", kinds.INT64, []),
        ],
    )
    graph.initializer.append(helper.make_tensor("turns", kinds.INT64, [], [1 << 60]))
    for node in graph.node:
        for index, entering in enumerate(node.input):
            if entering == "last":
                node.input[index] = "last.late"
    graph.node.insert(0, helper.make_node("Loop", ["turns", "", "first"], ["looped"], body=body))
    graph.node.insert(1, helper.make_node("Sub", ["looped", "first"], ["nothing"]))
    graph.node.insert(2, helper.make_node("Add", ["last", "nothing"], ["last.late"]))


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_of_another_shape_is_refused(copied: Path, name: str, axis: int) -> None:
    with_graph(copied, doubled(name, axis))
    report = check(copied)
    assert not report.ok and report.problem is not None and f"gives {name} the shape" in report.problem
    with Model.load(copied, device="cpu") as model, pytest.raises(BundleError, match=f"gives {name} the shape"):
        model.generate([3, 4, 5])


@pytest.mark.parametrize("name", ["logits", "gate"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_none_are_noticed(copied: Path, graph: str, name: str, value: float) -> None:
    def change(proto: Any) -> None:
        renamed(proto, name)
        proto.initializer.append(onnx.helper.make_tensor("none", onnx.TensorProto.FLOAT, [], [value]))
        proto.node.append(onnx.helper.make_node("Add", [f"{name}.inner", "none"], [name]))

    with_graph(copied, change, graph)
    report = check(copied)
    assert not report.ok and report.problem is not None and "are no finite numbers" in report.problem


def test_what_fails_while_it_runs_is_told_once(copied: Path, graph: str, capfd: pytest.CaptureFixture[str]) -> None:
    def change(proto: Any) -> None:
        renamed(proto, "gate")
        sizes = onnx.helper.make_tensor("sizes", onnx.TensorProto.INT64, [2], [1 << 30, 1 << 30])
        proto.initializer.append(sizes)
        proto.node.append(onnx.helper.make_node("Expand", ["gate.inner", "sizes"], ["gate"]))

    with_graph(copied, change, graph)
    report = check(copied)
    assert not report.ok and report.problem is not None and "onnxruntime failed while running" in report.problem
    assert capfd.readouterr().err == ""


def test_a_block_that_gives_other_logits_is_refused(copied: Path) -> None:
    with_graph(copied, doubled("logits", 0), "block.onnx")
    report = check(copied)
    assert not report.ok and report.problem is not None and "block.onnx: gives logits the shape [2, " in report.problem
    with Model.load(copied, device="cpu") as model, pytest.raises(BundleError, match="gives logits the shape"):
        model.generate([3, 4, 5])


@pytest.mark.parametrize("name", ["hidden_out", "gate"])
def test_a_block_that_gives_other_states_is_refused(copied: Path, name: str) -> None:
    with_graph(copied, doubled(name, 0), "block.onnx")
    report = check(copied)
    assert not report.ok and report.problem is not None and name in report.problem


def test_the_loop_graph_beside_a_block_is_tried_too(copied: Path) -> None:
    block, fields = (copied / "block.onnx").read_bytes(), Manifest.read(copied).files["block.onnx"]
    with_graph(copied, doubled("logits", 0))
    (copied / "block.onnx").write_bytes(block)
    entry = {"bytes": fields.bytes, "sha256": fields.sha256}
    edit_manifest(copied, lambda fields: fields["files"].update({"block.onnx": entry}))
    report = check(copied)
    assert not report.ok and report.problem is not None and "model.onnx: gives logits the shape" in report.problem


def test_a_graph_that_never_ends_is_ended(copied: Path) -> None:
    with_graph(copied, endless)
    runner, _ = open_on("cpu", copied, Manifest.read(copied), 1)
    with pytest.raises(RRTEdgeError, match=r"model\.onnx: a step took longer than 0\.5 s and was ended"):
        try_token(runner, seconds=0.5)
    runner.close()


def test_runs_that_end_in_time_are_not_touched(copied: Path) -> None:
    runner, _ = open_on("cpu", copied, Manifest.read(copied), 1)
    for _ in range(3):
        try_token(runner, seconds=30)
    runner.close()


def test_what_a_call_raises_goes_on_and_its_deadline_is_forgotten() -> None:
    class Options:
        terminate = False

    def fail(_: Any) -> None:
        raise ValueError("own")

    options: Any = Options()
    with pytest.raises(ValueError, match="own"):
        DEADLINES.run(fail, options, 1)
    assert DEADLINES.run(lambda _: None, options, -1) and not options.terminate

    def wait(options: Any) -> None:
        while not options.terminate:
            np.zeros(1)
        raise RuntimeError("terminated")

    assert not DEADLINES.run(wait, options, 0) and not options.terminate


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_mapped_or_read_and_the_tokens_are_the_same(copied: Path) -> None:
    def is_mapped() -> bool:
        return str(copied / "model.onnx.data") in Path("/proc/self/maps").read_text()

    with Model.load(copied, device="cpu", mmap=False, reproducible=True) as model:  # to the last bit
        assert not is_mapped()
        tokens = model.generate([3, 4, 5]).tokens
    with Model.load(copied, device="cpu", reproducible=True) as model:
        assert is_mapped()
        assert model.generate([3, 4, 5]).tokens == tokens
    assert not is_mapped()
    with pytest.raises(BadInputError, match="no-mmap: does not go with weight-cache"):
        Model.load(copied, device="cpu", mmap=False, weight_cache=copied / "cache")
