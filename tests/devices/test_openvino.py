"""OpenVINO on the CPU, in an environment of its own: its builds of onnxruntime take the place of the plain one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.devices.decoding import HEAVY

PYTHON = "RRT_EDGE_OPENVINO_PYTHON"  # of an environment with onnxruntime-openvino and this project


@pytest.fixture(scope="module")
def told(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"{PYTHON} names no environment with onnxruntime-openvino")
    program = Path(__file__).with_name("decoding.py")
    command = [
        python,
        "-P",
        str(program),
        str(demo),
        "openvino",
        "float32",
        str(tmp_path_factory.mktemp("profile") / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_whole_decode_is_the_cpus_at_every_depth(told: dict[str, list[float]]) -> None:
    positions = told["positions"]
    assert positions > 300 and max(told["errors"]) < 2e-2  # type: ignore[operator]
    assert min(told["agree"]) >= 0.99 * positions and told["exits"] == [0, 0]  # type: ignore[operator]


def test_products_run_on_it_and_attention_beside_it(told: dict[str, list[tuple[str, str, int]]]) -> None:
    by_provider = {
        provider: {kind for kind, other, _ in told["ran"] if other == provider} for _, provider, _ in told["ran"]
    }
    assert by_provider["OpenVINOExecutionProvider"]
    assert by_provider["CPUExecutionProvider"] & HEAVY == {"GroupQueryAttention"}


def test_a_user_gets_an_answer(told: dict[str, str]) -> None:
    assert told["device"] == "openvino" and told["text"].startswith("Join two or more pathname components")
