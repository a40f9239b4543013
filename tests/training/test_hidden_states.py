"""Hidden states after each layer, and uptraining that brings them near the teacher's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rrt_edge
from rrt_edge.model.text import read_examples
from rrt_edge.training.data import PadCollator
from rrt_edge.training.losses import hidden_loss
from rrt_edge.training.options import TrainOptions
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
        return float(online.both_losses(outputs, batch, asked, "forward-kl", 1.0)[1])


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


@pytest.mark.parametrize("changes", [{}, {"cpu_replicas": 2}, {"packing": True, "max_length": 64}])
def test_states_come_nearer_to_the_teachers(
    source: Path, recursive: Path, data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = {}
    for weight in (0.0, 10.0):
        options = quick(stages=("uptrain",), epochs=10, hidden_weight=weight, **changes)
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
