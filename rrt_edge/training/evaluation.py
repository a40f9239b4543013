"""How good each depth of a recursive model is: perplexity, agreement with full depth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.model.text import Example
from rrt_edge.runtime.scoring.metrics import Scores, joined, scores_of
from rrt_edge.training.distributed import summed
from rrt_edge.training.teacher import predicting, text_of


@dataclass(frozen=True)
class DepthScore:
    """At one depth: perplexity of the labels, and the share of positions whose likeliest token is full depth's."""

    depth: int
    perplexity: float
    agreement: float


@torch.no_grad()
def score_checkpoint(model: RecursiveForCausalLM, examples: Iterable[Example]) -> Scores:
    """Score a model in torch as `rrt_edge.runtime.scoring.bundle_scores.score_bundle` scores a bundle.

    Raises:
        BadInputError: there is nothing to score.
    """
    parts = []
    for number, example in enumerate(examples):
        ids, predicts = torch.tensor([example["input_ids"]]), predicting(torch.tensor([example["labels"]]))
        if predicts.any():
            out = model(ids, logits_mask=predicts, output_depths=True)
            assert out.depth_logits is not None
            gate = torch.ones(len(out.depth_logits), int(predicts.sum()))
            if out.gate_logits is not None:
                gate[:-1] = torch.sigmoid(out.gate_logits).T
            targets = ids[:, 1:][predicts[:, :-1]].numpy()
            parts.append(
                scores_of([logits.float().numpy() for logits in out.depth_logits], gate.numpy(), targets, number)
            )
    return joined(parts)


@torch.no_grad()
def depth_scores(model: RecursiveForCausalLM, batches: Iterable[dict[str, Tensor]]) -> list[DepthScore]:
    """Scores of every depth over batches as `PadCollator` makes them, of all processes together."""
    loops = model.config.loops
    losses, agreed, positions = [0.0] * loops, [0] * loops, 0
    device = next(model.parameters()).device
    for batch in batches:
        predicts = predicting(batch["labels"])
        targets = batch["labels"][:, 1:][predicts[:, :-1]]
        logits = model(**text_of(batch), logits_mask=predicts, output_depths=True).depth_logits
        final = logits[-1].argmax(dim=-1)
        positions += len(targets)
        for index, own in enumerate(logits):
            losses[index] += float(F.cross_entropy(own.float(), targets, reduction="sum"))
            agreed[index] += int((own.argmax(dim=-1) == final).sum())
    *sums, positions = summed(torch.tensor([*losses, *agreed, positions], dtype=torch.float64, device=device)).tolist()
    pairs = zip(sums[:loops], sums[loops:], strict=True)
    return [
        DepthScore(depth, math.exp(min(loss / max(positions, 1), 700)), same / max(positions, 1))
        for depth, (loss, same) in enumerate(pairs, 1)
    ]
