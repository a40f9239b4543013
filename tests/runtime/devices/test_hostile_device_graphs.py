"""Graphs for devices that somebody hostile made, on the CPU: outputs of other shapes and types, and odd archives."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime import BundleError
from rrt_edge.runtime.bundle.device_graphs import read_archive
from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS
from rrt_edge.runtime.errors import DeviceError
from tests.conftest import PREBUILT
from tests.runtime.devices.decoding import on_device

onnx = pytest.importorskip("onnx")
DOUBLE = 11
OUTPUTS = {
    "rows": ("embedded", "cos", "turn.0"), "float32/block": ("hidden_out", "gate", "present_key.1.0"),
    "float32/head": ("logits",), "float32/attend.0": ("attended", "present_value"),
}  # fmt: skip
CASES = [(graph, output) for graph, outputs in OUTPUTS.items() for output in outputs]


def changed(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A bundle whose archive has one file changed."""
    bundle = Path(shutil.copytree(PREBUILT, folder / "bundle"))
    with zipfile.ZipFile(PREBUILT / DEVICE_GRAPHS) as old, zipfile.ZipFile(bundle / DEVICE_GRAPHS, "w") as new:
        for member in old.namelist():
            new.writestr(member, change(old.read(member)) if member == name else old.read(member))
    return bundle


def with_node(output: str, operator: str, inputs: int, **attributes: Any) -> Callable[[bytes], bytes]:
    """An operator comes between what makes an output and the output; its declared shape goes."""

    def change(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        for node in model.graph.node:
            for names in (node.output, node.input):
                for index, name in enumerate(names):
                    names[index] = f"{output}.inner" if name == output else name
        node = onnx.helper.make_node(operator, [f"{output}.inner"] * inputs, [output], **attributes)
        model.graph.node.append(node)
        for value in model.graph.output:
            if value.name == output:
                value.type.tensor_type.ClearField("shape")
                value.type.tensor_type.elem_type = attributes.get("to", value.type.tensor_type.elem_type)
        return bytes(model.SerializeToString())

    return change


@pytest.mark.parametrize(("graph", "output"), CASES)
@pytest.mark.parametrize("axis", [0, -1])
def test_an_output_of_another_shape_is_our_error(tmp_path: Path, graph: str, output: str, axis: int) -> None:
    bundle = changed(tmp_path, f"{graph}.onnx", with_node(output, "Concat", 2, axis=axis))
    with pytest.raises(DeviceError, match="device cpu: onnxruntime failed while running the model"), on_device(bundle):
        pass


@pytest.mark.parametrize(("graph", "output"), [case for case in CASES if case != ("rows", "embedded")])
def test_an_output_of_another_type_is_our_error(tmp_path: Path, graph: str, output: str) -> None:
    bundle = changed(tmp_path, f"{graph}.onnx", with_node(output, "Cast", 1, to=DOUBLE))
    with pytest.raises(DeviceError, match="device cpu: onnxruntime"), on_device(bundle):
        pass


@pytest.mark.parametrize(
    ("field", "value"),
    [("slots", 0), ("slots", 10**9), ("slots", 1.5), ("turns", -1), ("turns", 10**9), ("windows", [0]), ("windows", 7),
     ("windows", ["8"]), ("windows", [None] * 5000), ("attention_scale", None), ("attention_scale", "1"),
     ("attention_scale", 0), ("attention_softcap", -1), ("attention_softcap", True), ("version", None)],
)  # fmt: skip
def test_what_an_archive_says_of_its_graphs_is_bounded(tmp_path: Path, field: str, value: Any) -> None:
    bundle = changed(tmp_path, "about.json", lambda content: json.dumps({**json.loads(content), field: value}).encode())
    with pytest.raises(BundleError, match=f"{DEVICE_GRAPHS}: .*{field}") as caught:
        read_archive(bundle)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("offset, value", [(8, 1), (10, 99)], ids=["encrypted", "another compression"])
def test_an_archive_that_cannot_be_unpacked_is_damaged(tmp_path: Path, offset: int, value: int) -> None:
    bundle = changed(tmp_path, "", lambda content: content)
    content = bytearray((bundle / DEVICE_GRAPHS).read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + offset] = value
        at = content.find(b"PK\x01\x02", at + 1)
    (bundle / DEVICE_GRAPHS).write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        read_archive(bundle)
