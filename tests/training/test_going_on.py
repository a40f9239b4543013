"""Going on after a kill: from the last checkpoint that is whole, with what has changed said, and no step too many."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.runtime import RRTEdgeError
from rrt_edge.runtime.system.files import writing
from rrt_edge.training import checkpoints
from rrt_edge.training.trainer import StageTrainer
from tests.training.chats import quick

OPTIONS: dict[str, Any] = {"stages": ("uptrain",), "epochs": 5, "save_steps": 2}


class Killed(BaseException):
    """Stands for a kill: nothing is cleaned up behind it but what Python's own blocks do."""


@pytest.fixture
def cut(recursive: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended behind step 6, with checkpoints of steps 4 and 6."""
    original, steps = StageTrainer.training_step, 0

    def killed(self: StageTrainer, *args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", killed)
        with pytest.raises(Killed):
            rrt_edge.train(recursive, tmp_path / "cut", data=data, options=quick(**OPTIONS))
    return tmp_path / "cut.work" / "uptrain"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are trained from now on."""
    original, trained = StageTrainer.training_step, list[int]()

    def counted(self: StageTrainer, *args: object, **kwargs: object) -> object:
        trained.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", counted)
    return trained


def go_on(recursive: Path, data: Path, cut: Path, **changes: Any) -> None:
    rrt_edge.train(recursive, cut.parents[1] / "cut", data=data, options=quick(**{**OPTIONS, **changes}))


def test_the_last_two_checkpoints_are_kept_whole(cut: Path) -> None:
    assert sorted(path.name for path in cut.iterdir() if path.name != "runs") == ["checkpoint-4", "checkpoint-6"]
    listed = json.loads((cut / "checkpoint-6" / checkpoints.LIST).read_text("utf-8"))
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"} <= set(listed)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: empty(folder / "trainer_state.json"), "trainer_state.json is damaged"),
        (lambda folder: flip(folder / "model.safetensors"), "model.safetensors is damaged"),
        (lambda folder: (folder / checkpoints.LIST).unlink(), "it has no whole.json"),
        (lambda folder: empty(folder / checkpoints.LIST), "whole.json is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_skipped_and_told(
    recursive: Path, data: Path, cut: Path, steps: list[int], capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object], what: str,
) -> None:  # fmt: skip
    damage(cut / "checkpoint-6")
    go_on(recursive, data, cut)
    told = capsys.readouterr().out
    assert f"checkpoint-6: is not whole ({what}), skipped" in told and "going on from step 4 of 10" in told
    assert steps == list(range(4, 10))


def test_it_says_from_which_step_it_goes_on(
    recursive: Path, data: Path, cut: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(recursive, data, cut)
    assert "uptrain: going on from step 6 of 10" in capsys.readouterr().out
    assert steps == list(range(6, 10)) and not cut.exists()


def test_a_kill_while_a_checkpoint_is_saved_leaves_those_before(
    recursive: Path, data: Path, cut: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "settle", killed)
        with pytest.raises(Killed):
            go_on(recursive, data, cut)
    shutil.copytree(cut / "checkpoint-6", cut / "saving" / "checkpoint-8")  # as a kill leaves it
    assert sorted(path.name for path in cut.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    steps.clear()
    go_on(recursive, data, cut)
    assert steps == list(range(6, 10))


def test_changed_options_are_told(
    recursive: Path, data: Path, cut: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = Path(shutil.copy(data, tmp_path / "others.jsonl"))
    go_on(recursive, other, cut, lr=1e-3, epochs=6)
    told = capsys.readouterr().out
    assert "lr is 0.001 now; the run that this one goes on had 0.003" in told
    assert "epochs is 6 now; the run that this one goes on had 5" in told
    assert f"data is {other} now" in told and "batch is" not in told


@pytest.mark.parametrize("most", [1, 5, 6])
def test_no_step_beyond_max_steps_is_trained(
    recursive: Path, data: Path, cut: Path, steps: list[int], capsys: pytest.CaptureFixture[str], most: int
) -> None:
    reached = AutoModelForCausalLM.from_pretrained(cut / "checkpoint-6").state_dict()
    go_on(recursive, data, cut, max_steps=most)
    assert steps == []
    assert f"step 6 is reached already, of {most}; no further one is trained" in capsys.readouterr().out
    trained = AutoModelForCausalLM.from_pretrained(cut.parents[1] / "cut").state_dict()
    for name, tensor in reached.items():
        torch.testing.assert_close(trained[name], tensor.to(trained[name].dtype))


def test_a_second_run_of_the_same_target_is_told_who_trains(recursive: Path, data: Path, cut: Path) -> None:
    import threading

    errors: list[Exception] = []

    def second() -> None:
        try:
            go_on(recursive, data, cut)
        except RRTEdgeError as error:
            errors.append(error)

    with writing(cut.parents[1] / "cut"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} (" in str(errors[0]) and (cut / "checkpoint-6").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX'")
def test_weights_have_the_mode_of_the_umask(recursive: Path, data: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        rrt_edge.train(recursive, tmp_path / "out", data=data, options=quick(**{**OPTIONS, "max_steps": 1}))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert set(modes.values()) == {0o640}, modes


def test_what_fails_before_there_is_a_checkpoint_leaves_nothing(
    recursive: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
        )  # torch's of a full disk

    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RRTEdgeError, match="the disk is full"):
        rrt_edge.train(recursive, tmp_path / "out", data=data, options=quick(**OPTIONS))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
