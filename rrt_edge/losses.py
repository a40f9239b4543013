"""The loss of each training stage (Relaxed Recursive Transformers, sections 3.1 and 3.7, appendices E and J)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer

from rrt_edge.data import IGNORED

ExitLoss = Literal["aggressive", "weighted"]
Divergence = Literal["forward-kl", "reverse-kl", "jsd", "tvd"]


def divergence(student: Tensor, teacher: Tensor, kind: Divergence = "forward-kl", temperature: float = 1.0) -> Tensor:
    """Mean distance of the student's distribution from the teacher's over rows of logits [N, V].

    `forward-kl` is KL(teacher || student), `reverse-kl` the other way round, `jsd` their mean against the mixture of
    both, `tvd` half the sum of absolute differences. At a temperature the distributions are softened and all but the
    last scaled by its square, as is usual.
    """
    q = F.log_softmax(student.float() / temperature, dim=-1)
    p = F.log_softmax(teacher.float() / temperature, dim=-1)
    if kind == "tvd":
        return 0.5 * (p.exp() - q.exp()).abs().sum(dim=-1).mean()
    if kind == "forward-kl":
        found = F.kl_div(q, p, log_target=True, reduction="batchmean")
    elif kind == "reverse-kl":
        found = F.kl_div(p, q, log_target=True, reduction="batchmean")
    else:
        mixture = torch.logaddexp(p, q) - math.log(2)
        both = [F.kl_div(mixture, one, log_target=True, reduction="batchmean") for one in (p, q)]
        found = 0.5 * (both[0] + both[1])
    return found * temperature**2


def uptrain_loss(
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | None,
    kd_weight: float,
    temperature: float,
    kind: Divergence = "forward-kl",
) -> Tensor:
    """Cross entropy of the final logits [N, V], plus their divergence from the teacher's where there is one."""
    loss = F.cross_entropy(logits.float(), targets)
    if teacher is not None and kd_weight:
        loss = loss + kd_weight * divergence(logits, teacher, kind, temperature)
    return loss


def exit_loss(depth_logits: tuple[Tensor, ...], targets: Tensor, kd_weight: float = 1.0) -> Tensor:
    """The earlier loops' losses: cross entropy, and forward KL from the detached final logits (section 3.7)."""
    final = depth_logits[-1].detach()
    losses = [F.cross_entropy(early.float(), targets) for early in depth_logits[:-1]]
    if kd_weight:
        losses += [kd_weight * divergence(early, final) for early in depth_logits[:-1]]
    return torch.stack(losses).sum()


def weighted_exit_loss(depth_logits: tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """Cross entropy of every loop, the i-th of B weighted by i / (1 + .. + B) (appendix J)."""
    weights = range(1, len(depth_logits) + 1)
    losses = [
        weight * F.cross_entropy(logits.float(), targets) for weight, logits in zip(weights, depth_logits, strict=True)
    ]
    return torch.stack(losses).sum() / sum(weights)


def draw_exits(asked: Tensor, loops: int) -> Tensor:
    """An exit depth for each token [B, S]: any from 1 to `loops` where `asked`, else `loops` as in prompts."""
    drawn = torch.randint(1, loops + 1, asked.shape, device=asked.device)
    drawn.view(-1)[asked.flatten().nonzero()[:1, 0]] = loops  # at least one to learn from
    return torch.where(asked, drawn, loops)


def gate_loss(gate_logits: Tensor, depth_logits: tuple[Tensor, ...]) -> Tensor:
    """Binary cross entropy of the gate [N, loops - 1] against "this depth's argmax is the final argmax"."""
    final = depth_logits[-1].argmax(dim=-1)
    agrees = torch.stack([(early.argmax(dim=-1) == final).float() for early in depth_logits[:-1]], dim=-1)
    return F.binary_cross_entropy_with_logits(gate_logits.float(), agrees)


@dataclass(frozen=True)
class Recipe:
    """The weights and kinds of a stage's losses (`TrainOptions`)."""

    kd_weight: float
    temperature: float
    divergence: Divergence
    exit_loss: ExitLoss
    exit_weight: float
    exit_kd_weight: float


class StageTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of one stage, computed at the labelled positions only."""

    def __init__(
        self,
        *,
        stage: str,
        teacher: PreTrainedModel | None,
        recipe: Recipe,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage, self.teacher, self.recipe = stage, teacher, recipe
        self.model_accepts_loss_kwargs = False  # our losses are means: let the Trainer divide when it accumulates
        if teacher is not None:
            teacher.to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]  # [B, S]
        asked = F.pad(labels[:, 1:] != IGNORED, (0, 1))  # the positions that predict a label
        targets = labels[:, 1:][asked[:, :-1]]  # [N]
        text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        config = self.accelerator.unwrap_model(model).config
        exits = None
        if self.stage != "uptrain" and config.kv_rule != "exact":
            # What a token that left is at depths behind its own means nothing: the losses are those of the others.
            exits = draw_exits(asked, config.loops)
            asked = asked & (exits == config.loops)
            targets = labels[:, 1:][asked[:, :-1]]
        outputs = model(**text, logits_mask=asked, output_depths=self.stage != "uptrain", exit_depths=exits)

        if self.stage == "gate":
            loss = gate_loss(outputs.gate_logits, outputs.depth_logits)
        else:
            taught = None
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(**text).logits[asked]
            recipe = self.recipe
            if self.stage == "early-exit" and recipe.exit_loss == "weighted":
                loss = weighted_exit_loss(outputs.depth_logits, targets)
            else:
                weight, temperature = recipe.kd_weight, recipe.temperature
                loss = uptrain_loss(outputs.logits, targets, taught, weight, temperature, recipe.divergence)
                if self.stage == "early-exit":
                    loss = loss + recipe.exit_weight * exit_loss(outputs.depth_logits, targets, recipe.exit_kd_weight)
        return (loss, outputs) if return_outputs else loss
