"""Training for a KV rule: exits drawn or taken from the gate, and what tokens that left teach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rrt_edge
from rrt_edge.model.text import read_examples
from rrt_edge.training.data import PadCollator
from rrt_edge.training.losses import draw_exits
from tests.training.chats import quick


def test_drawn_exits_leave_prompts_whole() -> None:
    asked = torch.tensor([[False, True, True, False]] * 3)
    for _ in range(50):
        exits = draw_exits(asked, 3)
        assert (exits[~asked] == 3).all() and exits.min() >= 1
    seen = torch.stack([draw_exits(asked, 3) for _ in range(50)])[:, 1]
    assert set(seen[:, 1].tolist()) == {1, 2, 3}
    many = draw_exits(torch.ones(400, 100, dtype=torch.bool), 2)
    shares = (many < 2).float().mean(dim=1)  # of a text: from hardly any token to nearly all
    assert shares.quantile(0.1) < 0.2 and shares.quantile(0.9) > 0.8 and 0.4 < shares.mean() < 0.6
    gated = draw_exits(torch.ones(400, 100, dtype=torch.bool), 2, by_gate=0.5)
    assert 0.45 < (gated == 0).float().mean() < 0.55


def test_tokens_leave_where_the_gate_reaches_the_threshold(recursive: Path) -> None:
    """One forward in which the gate decides is one in which its decisions are given, under every rule."""
    model = AutoModelForCausalLM.from_pretrained(recursive).eval()
    ids = torch.randint(4, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    free = torch.zeros_like(ids)
    free[:, :5] = 3  # as a prompt
    for rule in ("latest", "skip", "propagate"):
        model.config.kv_rule = rule
        with torch.no_grad():
            out = model(ids, exit_depths=free, exit_threshold=0.5, output_depths=True)
            told = model(ids, exit_depths=out.exit_depths, output_depths=True)
        assert (out.exit_depths[:, :5] == 3).all() and set(out.exit_depths.unique().tolist()) == {1, 2, 3}
        for ours, theirs in zip(out.depth_logits, told.depth_logits, strict=True):
            torch.testing.assert_close(ours, theirs)
        gates = torch.sigmoid(out.gate_logits)
        first = torch.where(gates[..., 0] >= 0.5, 1, torch.where(gates[..., 1] >= 0.5, 2, 3))
        assert torch.equal(out.exit_depths[:, 5:], first[:, 5:])


@pytest.mark.parametrize("rule", ["latest", "skip", "propagate"])
def test_a_token_that_left_is_told_as_had_it_alone_gone_on(recursive: Path, rule: str) -> None:
    """Its deeper logits, from which training learns too. Under `latest` and `propagate` it sees of itself what others
    see of it, so that a text in which it did not leave differs a little."""
    model = AutoModelForCausalLM.from_pretrained(recursive).eval()
    model.config.kv_rule = rule
    ids = torch.randint(4, 300, (1, 30), generator=torch.Generator().manual_seed(0))
    exits = torch.randint(1, 4, ids.shape, generator=torch.Generator().manual_seed(1))
    exits[0, 20] = 1
    alone = exits.clone()
    alone[0, 20] = 3
    with torch.no_grad():
        ours = model(ids, exit_depths=exits, output_depths=True).depth_logits
        theirs = model(ids, exit_depths=alone, output_depths=True).depth_logits
        exact = model(ids, output_depths=True).depth_logits
    for found, expected, other in zip(ours, theirs, exact, strict=True):
        torch.testing.assert_close(found[0, :20], expected[0, :20])
        error = (found[0, 20] - expected[0, 20]).abs().max()
        if rule == "skip":
            assert error < 1e-4
        else:
            assert error <= (other[0, 20] - expected[0, 20]).abs().max() + 1e-4


def test_the_gate_only_reads_the_states_it_judges(recursive: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(recursive)
    model(torch.tensor([[5, 6, 7]])).gate_logits.sum().backward()
    with_gradient = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    assert with_gradient and all(name.startswith("exit_gate") for name in with_gradient)


@pytest.mark.parametrize("exits", ["random", "gate"])
@pytest.mark.parametrize("rule", ["propagate", "latest", "skip"])
def test_training_for_a_rule_lowers_its_loss(
    source: Path, recursive: Path, data: Path, tmp_path: Path, rule: str, exits: str
) -> None:
    """The loss of the tokens that run all depths while others have left, under the rule trained for."""

    def loss(folder: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.config.kv_rule = rule
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = PadCollator(0)(read_examples(data, tokenizer, 64)[:32])
        asked = torch.nn.functional.pad(batch["labels"][:, 1:] != -100, (0, 1))
        torch.manual_seed(0)
        drawn = draw_exits(asked, 3)
        whole = asked & (drawn == 3)
        with torch.no_grad():
            texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits = model(**texts, logits_mask=whole, exit_depths=drawn).logits
        return float(torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:][whole[:, :-1]]))

    options = quick(stages=("early-exit",), kv_rule=rule, exits=exits)
    rrt_edge.train(recursive, tmp_path / "out", data=data, teacher=source, options=options)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.kv_rule == rule
    assert loss(tmp_path / "out") < 0.7 * loss(recursive)
