"""Hidden states after each layer, and uptraining that brings them near the teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rrt_edge
from rrt_edge.model.sharing import Order
from rrt_edge.model.text import read_examples
from rrt_edge.training.data import PadCollator
from rrt_edge.training.losses import hidden_loss
from rrt_edge.training.options import Stage, TrainOptions
from rrt_edge.training.teacher import OnlineTeacher, predicting, text_of
from tests.training.chats import quick


def apart(student: Path, teacher: Path, data: Path) -> float:
    """How far a student's hidden states are from its teacher's on some chats of different lengths."""
    batch = PadCollator(0)(read_examples(data, AutoTokenizer.from_pretrained(student), 99)[:4])
    online = OnlineTeacher(AutoModelForCausalLM.from_pretrained(teacher).eval())
    asked = predicting(batch["labels"])
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(student).eval()
        outputs = model(**text_of(batch), logits_mask=asked, output_hidden_states=True)
        said = online.answer(batch, asked, states=True)
        return float(said.distance(outputs.hidden_states, model.config, batch["attention_mask"].bool()))


def test_a_model_that_lost_nothing_has_its_sources_states_after_each_layer(source: Path, tmp_path: Path) -> None:
    rrt_edge.convert(source, tmp_path / "whole", loops=2, rank=1.0 - 1e-9)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(source)(ids, output_hidden_states=True).hidden_states
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(ids, output_hidden_states=True).hidden_states
        none = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(ids).hidden_states
    assert none is None and len(ours) == len(theirs) - 1
    torch.testing.assert_close(ours[:-1], theirs[1:-1], atol=1e-4, rtol=1e-4)  # transformers norms the last


def test_the_distance_is_a_share_of_each_tokens_length_and_padding_has_none() -> None:
    theirs = [
        torch.tensor([[[3.0, 4.0], [300.0, 400.0], [1.0, 1.0]]]),
        torch.tensor([[[0.0, 2.0], [1.0, 0.0], [1.0, 1.0]]]),
    ]
    ours = [
        torch.tensor([[[3.0, 0.0], [300.0, 400.0], [9.0, 9.0]]]),
        torch.tensor([[[0.0, 1.0], [0.0, 0.0], [9.0, 9.0]]]),
    ]
    kept = torch.tensor([[True, True, False]])
    torch.testing.assert_close(hidden_loss(ours, theirs, kept), torch.tensor(((16 / 25) / 2 + (1 / 4 + 1) / 2) / 2))


def test_the_first_of_interleaved_loops_has_its_sources_states_after_as_many_layers_as_there_are_loops(
    source: Path, tmp_path: Path
) -> None:
    """Of a source whose every second layer adds nothing, so that the first loop does all that it does."""
    model = AutoModelForCausalLM.from_pretrained(source)
    for layer in model.model.layers[1::2]:  # they add nothing: the first loop is all
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "source")
    rrt_edge.convert(tmp_path / "source", tmp_path / "out", loops=2, rank=10_000, order="interleaved", own_vectors=True)
    ours, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), torch.arange(3, 20)[None]
    with torch.no_grad():
        theirs = model(ids, output_hidden_states=True).hidden_states
        states = ours(ids, output_hidden_states=True).hidden_states
    pairs = ours.config.same_states()
    assert [layers for _, layers in pairs] == list(range(2, len(model.model.layers) + 1, 2))
    for run, layers in pairs[:-1]:  # transformers norms the last
        torch.testing.assert_close(states[run], theirs[layers], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("uptrain", {}),
        ("uptrain", {"cpu_replicas": 2}),
        ("uptrain", {"packing": True, "max_length": 64}),
        ("early-exit", {}),
        ("early-exit", {"exit_loss": "stochastic"}),
    ],
)
@pytest.mark.parametrize("order", ["consecutive", "interleaved"])
def test_states_come_nearer_to_the_teachers(
    source: Path, data: Path, tmp_path: Path, stage: Stage, changes: dict[str, Any], order: Order
) -> None:
    found, recursive = {}, tmp_path / "recursive"
    rrt_edge.convert(source, recursive, loops=2, rank=4, order=order)
    for weight in (0.0, 10.0):
        options = quick(stages=(stage,), epochs=10, hidden_weight=weight, **changes)
        rrt_edge.train(recursive, tmp_path / f"{weight}", data=data, teacher=source, options=options)
        found[weight] = apart(tmp_path / f"{weight}", source, data)
    assert found[10.0] < 0.7 * apart(recursive, source, data)
    assert found[10.0] < 0.9 * found[0.0]


def test_what_has_no_such_states_is_refused(source: Path, recursive: Path, data: Path, tmp_path: Path) -> None:
    options = quick(stages=("uptrain",), hidden_weight=1.0)
    with pytest.raises(rrt_edge.BadInputError, match="hidden-weight needs a teacher; name the checkpoint's source"):
        rrt_edge.train(recursive, tmp_path / "out", data=data, options=options)
    teacher = AutoModelForCausalLM.from_pretrained(source)
    teacher.model.layers, teacher.config.num_hidden_layers = teacher.model.layers[:2], 2
    teacher.save_pretrained(tmp_path / "shallow")
    with pytest.raises(rrt_edge.BadInputError, match=r"shallow: runs 2 layers of \d+ where .* runs \d+ of \d+; hidden"):
        rrt_edge.train(recursive, tmp_path / "out", data=data, teacher=tmp_path / "shallow", options=options)
    for changes in ({"teacher_top_k": 5}, {"gradient_checkpointing": True}):
        with pytest.raises(rrt_edge.BadInputError, match="hidden-weight needs the teacher beside the student"):
            TrainOptions(hidden_weight=1.0, **changes)  # type: ignore[arg-type]
