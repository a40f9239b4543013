"""`auto`: a trial once, kept; the CPU where nothing else runs; never in silence."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path

import pytest

from rrt_edge.runtime import BadInputError, Model, Sampling
from rrt_edge.runtime.errors import DeviceError
from rrt_edge.runtime.running.devices import choice
from rrt_edge.runtime.running.devices.finding import Device, find_devices

ABSENT = Device("cuda", "a GPU that is not there", "CUDAExecutionProvider", usable=True)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RRT_EDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pretend(monkeypatch: pytest.MonkeyPatch, *others: Device) -> None:
    """These devices, as if they were hardware."""
    hardware = [dataclasses.replace(one, software=False) for one in others]
    monkeypatch.setattr(choice, "other_devices", lambda: hardware)


def load(bundle: Path, caplog: pytest.LogCaptureFixture) -> tuple[str, list[str]]:
    """What `auto` takes, and the warnings that come with it."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "rrt_edge"), Model.load(bundle, device="auto") as model:
        assert model.generate([5, 6], Sampling(max_tokens=2)).stats.device == model.device
        assert f"loaded on {model.device}" in caplog.text
        return model.device, [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_trial_is_made_once_and_kept(
    webgpu: str, bundle: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = [one for one in find_devices() if one.name == webgpu]
    pretend(monkeypatch, found)
    chosen, warnings = load(bundle, caplog)
    assert len(warnings) == 1 and "trying which device runs" in warnings[0]
    (kept,) = json.loads((own_home / "devices.json").read_text("utf-8")).values()
    assert set(kept) == {"cpu", "webgpu"} and all(seconds > 0 for seconds in kept.values())
    assert chosen == min(kept, key=kept.get)
    assert load(bundle, caplog) == (chosen, [])
    # What is kept decides, not the name: with the times turned round the other device is taken.
    key = next(iter(json.loads((own_home / "devices.json").read_text("utf-8"))))
    turned = {"cpu": kept["webgpu"], "webgpu": kept["cpu"]}
    (own_home / "devices.json").write_text(json.dumps({key: turned}), "utf-8")
    assert load(bundle, caplog) == (min(turned, key=turned.get), [])


def test_a_device_that_fails_its_trial_is_left_out(
    bundle: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Never in silence, and not for ever: after a day it is tried again."""
    pretend(monkeypatch, ABSENT)
    told = "device cuda is left out: device cuda: CUDAExecutionProvider is not installed"
    chosen, warnings = load(bundle, caplog)
    assert chosen == "cpu" and len(warnings) == 2 and told in warnings[-1]
    place = own_home / "devices.json"
    ((key, kept),) = json.loads(place.read_text("utf-8")).items()
    assert isinstance(kept["cpu"], float) and "not installed" in kept["cuda"]["problem"]
    chosen, warnings = load(bundle, caplog)
    assert chosen == "cpu" and len(warnings) == 1 and told in warnings[0]
    kept["cuda"]["at"] -= 25 * 3600
    place.write_text(json.dumps({key: kept, "another": {"cpu": 1.0}}), "utf-8")
    chosen, warnings = load(bundle, caplog)
    assert chosen == "cpu" and "fastest: cuda" in warnings[0]
    written = json.loads(place.read_text("utf-8"))
    assert written["another"] == {"cpu": 1.0} and written[key]["cuda"]["at"] > kept["cuda"]["at"] + 24 * 3600


def test_a_frozen_program_tries_nothing(
    bundle: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial would start the program itself."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    pretend(monkeypatch, ABSENT)
    chosen, warnings = load(bundle, caplog)
    assert chosen == "cpu" and warnings == ["device cpu: this program cannot try cuda; name one"]
    assert not (own_home / "devices.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
def test_a_driver_that_crashes_takes_only_the_trial_along(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    pretend(monkeypatch, ABSENT)
    chosen, warnings = load(bundle, caplog)
    assert chosen == "cpu" and "device cuda is left out: the trial ended with status -11" in warnings


def test_a_device_that_does_not_load_any_more_leaves_one_warning(
    bundle: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, ABSENT)
    load(bundle, caplog)
    place = own_home / "devices.json"
    (key,) = json.loads(place.read_text("utf-8"))
    place.write_text(json.dumps({key: {"cpu": 9.0, "cuda": 1.0}}), "utf-8")
    chosen, warnings = load(bundle, caplog)
    assert chosen == "cpu" and len(warnings) == 1
    assert warnings[0].startswith("device cuda: ") and warnings[0].endswith("; the CPU runs it")
    (kept,) = json.loads(place.read_text("utf-8")).values()
    assert kept["cpu"] == 9.0 and "not installed" in kept["cuda"]["problem"]


def test_nothing_is_tried_where_there_is_nothing_else(
    bundle: Path, own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A software adapter is no GPU."""
    assert load(bundle, caplog) == ("cpu", [])
    assert not (own_home / "devices.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_file_of_choices_is_replaced(
    bundle: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    pretend(monkeypatch, ABSENT)
    own_home.mkdir()
    (own_home / "devices.json").write_text(content, "utf-8")
    assert load(bundle, caplog)[0] == "cpu"
    assert len(json.loads((own_home / "devices.json").read_text("utf-8"))) == 1


def test_a_choice_that_cannot_be_kept_is_made_all_the_same(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RRT_EDGE_HOME", str(tmp_path / "file"))
    pretend(monkeypatch, ABSENT)
    assert load(bundle, caplog)[0] == "cpu"
    assert "the choice cannot be kept" in caplog.text


def test_a_named_device_is_never_replaced(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="device cuda: CUDAExecutionProvider is not installed; pip uninstall"):
        Model.load(bundle, device="cuda")
    with pytest.raises(BadInputError, match="device 'gpu': choose from auto, cpu, webgpu"):
        Model.load(bundle, device="gpu")
    with pytest.raises(BadInputError, match="weight-cache: is for the CPU, not for cuda"):
        Model.load(bundle, device="cuda", weight_cache=tmp_path)


def test_the_environment_names_a_device(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRT_EDGE_DEVICE", "cuda")
    with pytest.raises(DeviceError, match="device cuda"):
        Model.load(bundle)
    with Model.load(bundle, device="cpu") as model:
        assert model.device == "cpu"
