"""Mapped weights: the same numbers as onnxruntime's own mapping gives, without all pages of the file in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from rrt_edge.runtime.running.weight_file import open_session

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux alone")
MB = 1_000_000
CHILD = """
import json, re, sys
from pathlib import Path
import onnxruntime
from rrt_edge.runtime.running.weight_file import open_session

def memory():
    status = Path("/proc/self/status").read_text()
    return [int(re.search(rf"^{name}:\\s+(\\d+)", status, re.MULTILINE)[1]) * 1024 for name in ("VmHWM", "RssAnon")]

before = memory()
session = open_session(Path(sys.argv[1]), onnxruntime.SessionOptions(), mapped=True)
print(json.dumps([after - first for after, first in zip(memory(), before)]))
"""


def write_products(folder: Path, products: int, size: int, rng: np.random.Generator) -> int:
    """model.onnx, which multiplies by 4-bit matrices in turn, and its weights, of all types; returns their bytes."""
    helper, nodes, tensors, end = onnx.helper, [], [], 0

    def stored(name: str, array: NDArray[Any]) -> str:
        nonlocal end
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", "model.onnx.data"), ("offset", end), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        file.write(array.tobytes())
        end += array.nbytes
        return name

    with (folder / "model.onnx.data").open("wb") as file:
        for index in range(products):
            blocks = rng.integers(0, 256, (size, size // 32, 16), np.uint8)
            scales = rng.uniform(0, 2 / size, size * size // 32).astype(np.float32)
            names = [f"x{index}", stored(f"blocks{index}", blocks), stored(f"scales{index}", scales)]
            form = {"K": size, "N": size, "bits": 4, "block_size": 32, "accuracy_level": 4}
            nodes.append(helper.make_node("MatMulNBits", names, [f"x{index + 1}"], domain="com.microsoft", **form))
        stored("half", rng.normal(size=(64, size)).astype(np.float16))
        stored("row", np.array([2], np.int64))  # of a type that no weight of a bundle has
    nodes.append(helper.make_node("Cast", ["half"], ["table"], to=onnx.TensorProto.FLOAT))
    nodes.append(helper.make_node("Gather", ["table", "row"], ["picked"]))
    nodes.append(helper.make_node("Add", [f"x{products}", "picked"], ["y"]))
    shape = [onnx.TensorProto.FLOAT, ["rows", size]]
    values = [[helper.make_tensor_value_info(name, *shape)] for name in ("x0", "y")]
    graph = helper.make_graph(nodes, "products", *values, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    (folder / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    return end


def test_loading_never_holds_the_whole_file_and_what_is_packed_of_it(tmp_path: Path) -> None:
    size = write_products(tmp_path, 12, 4096, np.random.default_rng(0))
    assert size > 120 * MB
    command = [sys.executable, "-P", "-c", CHILD, str(tmp_path / "model.onnx")]
    peak, heap = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert heap > size  # packed, the weights take more than in the file
    assert peak < heap + size // 3


def test_the_numbers_are_those_of_onnxruntimes_own_mapping(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_products(tmp_path, 3, 1024, rng)
    path = tmp_path / "model.onnx"
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    session = open_session(path, onnxruntime.SessionOptions(), mapped=True)
    for rows in (1, 7):
        x = rng.normal(size=(rows, 1024)).astype(np.float32)
        (expected,), (y,) = plain.run(None, {"x0": x}), session.run(None, {"x0": x})
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [("offset", "999999999999"), ("offset", "-1"), ("offset", "x"), ("length", "7"), ("location", "other.data")],
)
def test_onnxruntime_says_what_is_wrong_with_a_tensors_place(tmp_path: Path, key: str, value: str) -> None:
    write_products(tmp_path, 2, 1024, np.random.default_rng(0))
    path = tmp_path / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (entry,) = (entry for entry in model.graph.initializer[2].external_data if entry.key == key)
    entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Exception) as plain:  # onnxruntime raises several unrelated types
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with pytest.raises(type(plain.value)) as ours:
        open_session(path, onnxruntime.SessionOptions(), mapped=True)
    assert str(ours.value) == str(plain.value)


def test_the_file_is_let_go_with_the_last_that_uses_the_session(tmp_path: Path) -> None:
    def is_mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    write_products(tmp_path, 1, 1024, np.random.default_rng(0))
    session = open_session(tmp_path / "model.onnx", onnxruntime.SessionOptions(), mapped=True)
    run = session.run
    del session
    assert is_mapped()
    run(None, {"x0": np.zeros((1, 1024), np.float32)})
    del run
    assert not is_mapped()
