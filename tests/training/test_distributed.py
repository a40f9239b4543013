"""Two processes on the CPU, the model sharded between them, train as one does; one goes on where two were stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rrt_edge.model.text import read_examples
from rrt_edge.training.data import Packed

RUN = """
import json, sys
from rrt_edge.runtime.system.options import read_options
from rrt_edge.training.options import TrainOptions
from rrt_edge.training.trainer import StageTrainer
from rrt_edge.training.training import train

checkpoint, teacher, data, out, options, stop = sys.argv[1:]
steps, step = 0, StageTrainer.training_step

def stopped(self, *given, **named):
    global steps
    steps += 1
    if steps > int(stop):
        raise SystemExit("stopped")
    return step(self, *given, **named)

if stop != "0":
    StageTrainer.training_step = stopped
options = read_options(TrainOptions, json.loads(options))
train(checkpoint, out, data=data, teacher=teacher, eval_data=data, options=options)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """Text that packs into an even number of rows, so that two processes have as many each."""
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    nouns = [
        f"The {one} {verb} the {other}. " * 3
        for one in ("cat", "dog")
        for verb in ("sees", "eats", "is")
        for other in ("hen", "fox")
    ]
    for count in range(24, 40):
        path.write_text("".join(json.dumps({"text": (nouns * 4)[index]}) + "\n" for index in range(count)), "utf-8")
        rows = len(list(Packed(read_examples(path, AutoTokenizer.from_pretrained(source), 96), 96)))
        if rows % 2 == 0:
            return path
    raise AssertionError("no even number of rows")


def train(processes: int, *arguments: Any, stop: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    fixed = {"epochs": 2, "lr": 2e-3, "warmup": 2, "packing": True, "max_length": 96, "save_steps": 4, "kd_weight": 0.5}
    options = {**fixed, "batch": 2 // processes, **options}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    program = launcher or ["-P"]
    script = Path(arguments[-1]).parent / "run.py"
    script.write_text(RUN)
    command = [sys.executable, *program, str(script), *map(str, arguments), json.dumps(options), str(stop)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=script.parent)


def logs(folder: Path, stage: str, key: str) -> list[float]:
    return [row[key] for row in json.loads((folder / "training.json").read_text())[stage] if key in row]


def test_two_processes_train_as_one(source: Path, recursive: Path, data: Path, tmp_path: Path) -> None:
    """Every stage, with a tied head, stacked adapters and gradient checkpointing."""
    folders = {}
    for count in (1, 2):
        folders[count] = tmp_path / f"by-{count}"
        options = {"stages": "all", "eval_steps": 4, "gradient_checkpointing": True}
        done = train(count, recursive, source, data, folders[count], **options)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(folders[count] / "model.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=0, msg=name)
    for stage in ("uptrain", "early-exit", "gate"):
        for depth in (1, 2, 3):
            ours, theirs = (logs(folders[count], stage, f"eval_perplexity_{depth}") for count in (2, 1))
            assert len(ours) > 3 and ours == pytest.approx(theirs, rel=1e-3)


def test_one_process_goes_on_where_two_were_stopped(source: Path, recursive: Path, data: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(1, recursive, source, data, whole, stages="uptrain", epochs=6).returncode == 0
    stopped = train(2, recursive, source, data, cut, stages="uptrain", epochs=6, stop=6)
    assert stopped.returncode != 0 and "stopped" in stopped.stderr and not cut.exists()
    assert (tmp_path / "cut.work" / "uptrain" / "checkpoint-4" / "optimizer.pt").is_file()
    done = train(1, recursive, source, data, cut, stages="uptrain", epochs=6)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (cut, whole))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=0, msg=name)
