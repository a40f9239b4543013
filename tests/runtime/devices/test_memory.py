"""Keys and values on a device: grown in steps, within a budget, given back."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import Engine, Model, OutOfMemoryError, Sampling
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.running.devices.cache import STEP
from rrt_edge.runtime.running.devices.loaded import LoadedGraphs
from rrt_edge.runtime.running.devices.runner import DeviceGraph
from tests.runtime.devices.decoding import on_device

LONG = np.random.default_rng(3).integers(2, 300, 1500).tolist()
ROW = 2 * 1 * 2 * 16 * 4  # bytes of a position at one depth of `endless`: keys and values of 2 heads of 16, float32
WAYS = pytest.mark.parametrize("way", ["loop graph", "device graphs"])


def load(bundle: Path, way: str, budget: int | None) -> Model:
    if way == "loop graph":
        return Model.load(bundle, context=4000, kv_budget_bytes=budget)
    return on_device(bundle, context=4000, budget=budget)


def used(model: Model) -> int:
    gc.collect()
    return int(model._loaded.runner.budget.used)  # type: ignore[attr-defined]


def test_buffers_grow_in_steps(endless: Path) -> None:
    with on_device(endless, context=4000) as model:
        layers = model.manifest.architecture.layers_per_block
        decoder = Decoder(model._loaded.runner)
        rooms = set()
        for start in range(0, 1500, 50):
            decoder.prefill(LONG[start : start + 50], ExitPolicy())
            room = used(model) // (ROW * layers * model.loops)
            assert start + 50 <= room <= max(STEP, (start + 50) * 5 // 4 + STEP)
            rooms.add(room)
        assert len(rooms) <= 6 and all(room % STEP == 0 for room in rooms)
        del decoder
        assert used(model) == 0


@WAYS
def test_a_budget_is_kept_and_the_model_goes_on(endless: Path, way: str) -> None:
    with load(endless, way, None) as free:
        expected = [free.generate(LONG[:300], Sampling(max_tokens=5), policy).text for policy in ("full", "depth=2")]
        whole = free.session()
        whole.generate(LONG[:300], Sampling(max_tokens=5))
        budget = 3 * used(free)  # room for three such conversations
    with load(endless, way, budget) as model:
        first = model.session()
        assert first.generate(LONG[:300], Sampling(max_tokens=5)).text == expected[0]
        held = used(model)
        assert 0 < held <= budget
        with pytest.raises(OutOfMemoryError, match=r"would take \d+ bytes, over the budget of \d+; close"):
            model.generate(LONG, Sampling(max_tokens=5))
        assert used(model) == held  # what had begun is given back
        assert model.generate(LONG[:300], Sampling(max_tokens=5), "depth=2").text == expected[1]
        again = first.generate([*first.ids, 7, 8], Sampling(max_tokens=5))
        assert again.stats.generated_tokens == 5
        del first, again
        assert used(model) == 0


@WAYS
def test_a_batch_over_the_budget_leaves_the_engine_usable(endless: Path, way: str) -> None:
    with load(endless, way, None) as free:
        one = free.session()
        expected = one.generate(LONG[:100], Sampling(max_tokens=5)).text
        budget = 2 * used(free)
    with load(endless, way, budget) as model:
        engine = Engine(model)
        engine.submit(LONG, Sampling(max_tokens=5))
        with pytest.raises(OutOfMemoryError, match="over the budget"):
            list(engine.run())
        request = engine.submit(LONG[:100], Sampling(max_tokens=5))
        list(engine.run())
        assert request.text == expected


def test_a_budget_that_holds_no_token_is_told_at_load(endless: Path) -> None:
    with pytest.raises(OutOfMemoryError, match="over the budget of 1000"):
        on_device(endless, context=4000, budget=1000)


@WAYS
def test_a_conversation_from_a_file_counts(endless: Path, way: str, tmp_path: Path) -> None:
    with load(endless, way, None) as free:
        session = free.session()
        session.generate(LONG[:600], Sampling(max_tokens=5))
        session.save(tmp_path / "talk.safetensors")
        taken = used(free)
    with load(endless, way, taken // 2) as model:
        with pytest.raises(OutOfMemoryError, match="over the budget"):
            model.load_session(tmp_path / "talk.safetensors")
        assert used(model) == 0
    with load(endless, way, 4 * taken) as model:
        kept = model.load_session(tmp_path / "talk.safetensors")
        assert 0 < used(model) <= taken
        assert kept.generate([*kept.ids, 5], Sampling(max_tokens=3)).stats.generated_tokens == 3


def test_where_the_shared_step_does_not_fit_requests_take_turns(
    endless: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = LoadedGraphs._session

    def full(self: LoadedGraphs, name: str) -> object:
        if name.endswith("step"):
            raise OutOfMemoryError("device cpu: its memory is full")
        return make(self, name)

    monkeypatch.setattr(LoadedGraphs, "_session", full)
    with on_device(endless, context=4000) as model:
        engine = Engine(model)
        requests = [engine.submit(LONG[at : at + 9], Sampling(max_tokens=6), "threshold=0.5") for at in (0, 20, 40)]
        list(engine.run())
        for at, request in zip((0, 20, 40), requests, strict=True):
            alone = model.generate(LONG[at : at + 9], Sampling(max_tokens=6), "threshold=0.5")
            assert request.text == alone.text
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["device cpu: its memory is full; requests take turns"]


def test_what_an_engine_counts_is_what_a_device_takes(endless: Path) -> None:
    with on_device(endless, context=4000) as model:
        for tokens in (1, 200, 257, 1000, 1500):
            decoder = Decoder(model._loaded.runner)
            decoder.prefill(LONG[:tokens], ExitPolicy())
            assert used(model) <= model._loaded.runner.kv_bytes(tokens) <= 2 * used(model)
            del decoder


MEASURED = """
import gc, json, sys
from pathlib import Path
from rrt_edge.runtime import Model, Sampling
def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
told = []
for _ in range(4):
    before = resident()
    model = Model.load(sys.argv[1], device=sys.argv[2], context=2000)
    session = model.session()
    session.generate(list(range(2, 32)), Sampling(max_tokens=3))
    loaded = resident()
    model.close()
    told.append((before, loaded, resident()))
    del model, session
print(json.dumps(told))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("device", ["webgpu", "cpu"])
@pytest.mark.usefixtures("checkpoints")
def test_close_gives_the_memory_back(request: pytest.FixtureRequest, device: str, tmp_path: Path) -> None:
    """Though a session is still there. From the second time on: what a provider loads once for the process stays."""
    from rrt_edge.exporters.shapes import random_bundle

    if device == "webgpu":
        request.getfixturevalue("webgpu")
    random_bundle("smollm", tmp_path / "bundle", loops=3, rank=0)
    command = [sys.executable, "-P", "-c", MEASURED, str(tmp_path / "bundle"), device]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for before, loaded, closed in told[1:]:
        assert loaded - before > 40 << 20
        assert closed - before < 0.3 * (loaded - before)
    assert told[-1][2] - told[1][2] < 20 << 20  # nothing grows from load to load


def test_the_device_graph_counts_its_own_budget(endless: Path) -> None:
    with on_device(endless, context=4000, budget=1 << 30) as model:
        assert isinstance(model._loaded.runner, DeviceGraph) and model._loaded.runner.budget.limit == 1 << 30
        model.generate(LONG[:10], Sampling(max_tokens=2))
    assert model.device == "cpu"
