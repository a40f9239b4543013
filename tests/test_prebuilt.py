"""The bundle that stands in for `bundle` where torch is missing: it must be what the exporter writes today."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime

from tests.conftest import PREBUILT


def contract(bundle: Path) -> list[tuple[str, str, Any]]:
    """Inputs and outputs of a bundle's graph."""
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    return [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]


def test_the_prebuilt_bundle_is_as_the_exporter_writes_it(checkpoints: ModuleType, tmp_path: Path) -> None:
    """Where this fails, write tests/prebuilt anew (CONTRIBUTING.md)."""
    checkpoints.write_prebuilt(tmp_path / "bundle")
    assert contract(PREBUILT) == contract(tmp_path / "bundle")
    ours, todays = (
        json.loads((folder / "manifest.json").read_text("utf-8")) for folder in (PREBUILT, tmp_path / "bundle")
    )
    assert ours.keys() == todays.keys() and ours["files"].keys() == todays["files"].keys()
    for name in ("format_version", "architecture", "gate", "weight_bytes"):
        assert ours[name] == todays[name]
