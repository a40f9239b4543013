"""Batches divided over threads: what is learnt is what one thread learns from the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rrt_edge
from rrt_edge.model.text import read_examples
from rrt_edge.training.data import PadCollator
from rrt_edge.training.replicas import Replicas, divided
from rrt_edge.training.teacher import predicting, text_of
from tests.training.chats import quick


def test_a_batch_is_divided_into_shorter_ones_of_like_size(source: Path, data: Path) -> None:
    examples = read_examples(data, AutoTokenizer.from_pretrained(source), 99)
    long = {"input_ids": [7] * 60, "labels": [7] * 60}
    batch = PadCollator(0)([long, *examples[:4]])
    parts = divided(batch, 2)
    assert [len(part["input_ids"]) for part in parts] == [3, 2]
    assert parts[0]["input_ids"].shape[1] == 60 > parts[1]["input_ids"].shape[1]
    assert sum(int(part["attention_mask"].sum()) for part in parts) == int(batch["attention_mask"].sum())
    assert sum(int(predicting(part["labels"]).sum()) for part in parts) == int(predicting(batch["labels"]).sum())
    assert len(divided(batch, 9)) == 5


def test_replicas_add_up_to_the_gradient_of_the_whole(recursive: Path, data: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(recursive, dtype=torch.float64)
    batch = PadCollator(0)(read_examples(data, AutoTokenizer.from_pretrained(recursive), 99)[:5])
    whole = model(**text_of(batch)).logits.square().sum()
    whole.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    replicas = Replicas(model, 3)
    assert replicas.models[1].model.block[0].mlp.down_proj.weight.data_ptr() == (
        model.model.block[0].mlp.down_proj.weight.data_ptr()
    )

    halves = divided({name: rows for name, rows in batch.items() if name != "labels"}, 3)
    longest = batch["input_ids"].shape[1]
    padding = sum((longest - part["input_ids"].shape[1]) for part in halves)
    assert padding == 0  # the chats are of one length: nothing is left out of the sum
    losses = [lambda replica, part=part: replica(**text_of(part)).logits.square().sum() for part in halves]
    torch.testing.assert_close(replicas.learn(losses), whole.detach())
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, expected[name], atol=1e-6, rtol=1e-6)
    replicas.close()


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "kd_weight": 0.5}, {"exit_loss": "weighted"}])
def test_replicas_train_to_the_same_weights(
    source: Path, recursive: Path, data: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    data.write_text(data.read_text("utf-8") + '{"text": "The cow eats hay and the ox eats hay and the hen sleeps."}\n')
    for count in (1, 3):
        options = quick(batch=7, epochs=2, cpu_replicas=count, **changes)
        rrt_edge.train(recursive, tmp_path / f"{count}", data=data, teacher=source, options=options)
    alone, divided = (AutoModelForCausalLM.from_pretrained(tmp_path / f"{count}").state_dict() for count in (1, 3))
    for name, weight in alone.items():
        torch.testing.assert_close(divided[name], weight, atol=2e-4, rtol=1e-3)


def test_replicas_are_for_one_process_on_a_cpu(
    recursive: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(rrt_edge.BadInputError, match="cpu-replicas: are for one process on a CPU"):
        rrt_edge.train(recursive, tmp_path / "out", data=data, options=quick(cpu_replicas=2))
