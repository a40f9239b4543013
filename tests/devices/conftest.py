"""What the tests of devices share: a bundle on a device, through the graphs that devices run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rrt_edge.runtime import Model
from rrt_edge.runtime.chat import ChatTemplate
from rrt_edge.runtime.device_graph import DeviceGraph
from rrt_edge.runtime.device_trial import add
from rrt_edge.runtime.devices import OpenDevice
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.kv_budget import KVBudget
from rrt_edge.runtime.manifest import Manifest
from rrt_edge.runtime.model import read_tokenizer

OnDevice = Callable[..., Model]


def on_device(
    bundle: Path,
    device: str = "cpu",
    *,
    precision: str = "float32",
    context: int | None = None,
    budget: int | None = None,
    profile: Path | None = None,
) -> Model:
    """A bundle driven block by block; also on the CPU, where `Model.load` would take the loop graph."""
    manifest = Manifest.read(bundle)
    context = context or min(512, manifest.architecture.context_length)
    opened = OpenDevice(device)
    runner = DeviceGraph(
        bundle, manifest.architecture, opened,
        context=context, budget=KVBudget(budget), precision=precision, profile=profile,
    )  # fmt: skip
    return Model(manifest, runner, read_tokenizer(bundle), ChatTemplate.from_folder(bundle), context, device)


@pytest.fixture(scope="session")
def webgpu() -> str:
    """The device's name, where it can at least add."""
    try:
        add("webgpu")
    except RRTEdgeError as error:
        pytest.skip(str(error))
    return "webgpu"
