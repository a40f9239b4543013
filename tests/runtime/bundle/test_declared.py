"""What a graph says of itself is looked for without trusting any length in it: onnxruntime says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rrt_edge.runtime.bundle.declared import METADATA, check_declared
from rrt_edge.runtime.bundle.manifest import Manifest
from tests.conftest import PREBUILT


@pytest.mark.parametrize("number", [1, METADATA])
@pytest.mark.parametrize("bits", [31, 32, 62, 63, 70])
def test_a_length_that_leads_out_of_the_file_is_no_error(tmp_path: Path, number: int, bits: int) -> None:
    folder = Path(shutil.copytree(PREBUILT, tmp_path / "bundle"))
    length = b"\xff" * (bits // 7) + bytes([(1 << bits % 7) - 1])
    (folder / "model.onnx").write_bytes(bytes([8, 10, number << 3 | 2]) + length + b"rest")
    check_declared(folder, Manifest.read(PREBUILT))
