"""Looped models of others are trained like our own: adapters of each depth on top, or their gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")

import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.training.options import TrainOptions
from tests.looped import reference, write_looped

IDS = [5, 9, 40, 7, 250, 33, 8]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"The {noun} sees the hen."}) + "\n" for noun in ("cat", "dog", "fox")))
    return path


def changes(before: Path, after: Path) -> set[str]:
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (before, after)]
    first, second = (dict(model.named_parameters()) for model in models)
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("kind", ["ouro", "nanbeige"])
def test_adapters_begin_at_zero_and_learn(tmp_path: Path, data: Path, kind: str) -> None:
    source = write_looped(tmp_path / "source", kind)
    report = rrt_edge.convert(source, tmp_path / "recursive", rank=4)
    assert (report.rank, report.lora_init) == (4, "zero")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "recursive")
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    assert float((logits - reference(source, IDS)[0][-1]).abs().max()) < 1e-4
    options = TrainOptions(stages=("uptrain",), max_steps=2, batch=2)
    rrt_edge.train(tmp_path / "recursive", tmp_path / "trained", data=data, options=options)
    changed = changes(tmp_path / "recursive", tmp_path / "trained")
    assert any(".lora_B" in name for name in changed)
    assert not any(name.startswith("exit_gate") for name in changed)


def test_a_hazard_learns_alone(tmp_path: Path, data: Path) -> None:
    rrt_edge.convert(write_looped(tmp_path / "source", "ouro"), tmp_path / "recursive")
    options = TrainOptions(stages=("gate",), max_steps=2, batch=2)
    rrt_edge.train(tmp_path / "recursive", tmp_path / "trained", data=data, options=options)
    assert changes(tmp_path / "recursive", tmp_path / "trained") == {"exit_gate.weight", "exit_gate.bias"}


def test_what_has_no_gate_has_none_to_train(tmp_path: Path, data: Path) -> None:
    rrt_edge.convert(write_looped(tmp_path / "source", "nanbeige"), tmp_path / "recursive")
    for stage in ("gate", "early-exit"):
        with pytest.raises(rrt_edge.BadInputError, match="has no exit gate; use --stages uptrain"):
            rrt_edge.train(
                tmp_path / "recursive", tmp_path / "trained", data=data, options=TrainOptions(stages=(stage,))
            )
