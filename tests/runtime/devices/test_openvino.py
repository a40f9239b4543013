"""OpenVINO on the CPU, in an environment of its own: its build of onnxruntime takes the place of the plain one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.devices.decoding import HEAVY

PYTHON = "RRT_EDGE_OPENVINO_PYTHON"  # of an environment with onnxruntime-openvino and this project


@pytest.fixture(scope="module")
def told(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `decoding.py` says there."""
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"{PYTHON} names no environment with onnxruntime-openvino")
    program, profile = Path(__file__).with_name("decoding.py"), tmp_path_factory.mktemp("profile") / "run"
    command = [python, "-P", str(program), str(demo), "openvino", "float32", str(profile)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_whole_decode_is_the_cpus_at_every_depth(told: dict[str, Any]) -> None:
    assert told["positions"] > 300 and max(told["errors"]) < 2e-2
    assert min(told["agree"]) >= 0.99 * told["positions"] and told["exits"] == [0, 0]


def test_products_run_on_it_and_attention_beside_it(told: dict[str, Any]) -> None:
    there, beside = (
        {kind for kind, provider, _ in told["ran"] if (provider == "CPUExecutionProvider") == on_cpu}
        for on_cpu in (False, True)
    )
    assert there and not there & HEAVY  # what it takes it compiles, under names of its own
    assert beside & HEAVY == {"GroupQueryAttention"}


def test_a_user_gets_an_answer_and_is_told_what_the_cpu_does(told: dict[str, Any]) -> None:
    assert told["device"] == "openvino" and told["text"].startswith("Join two or more pathname components")
    assert told["warnings"] == ["device openvino: the CPU runs GroupQueryAttention of it"]
