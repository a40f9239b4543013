"""The loss of each training stage (Relaxed Recursive Transformers, sections 3.1 and 3.7, appendices E and J)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer

from rrt_edge.data import IGNORED


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean KL(teacher || student) over rows of logits [N, V], scaled by temperature squared as is usual."""
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean") * temperature**2


def uptrain_loss(
    logits: Tensor, targets: Tensor, teacher: Tensor | None, kd_weight: float, temperature: float
) -> Tensor:
    """Cross entropy of the final logits [N, V], plus the forward KL from the teacher's where there is one."""
    loss = F.cross_entropy(logits.float(), targets)
    if teacher is not None and kd_weight:
        loss = loss + kd_weight * forward_kl(logits, teacher, temperature)
    return loss


def exit_loss(depth_logits: tuple[Tensor, ...], targets: Tensor) -> Tensor:
    """The earlier loops' losses: cross entropy, and forward KL from the detached final logits."""
    final = depth_logits[-1].detach()
    losses = [F.cross_entropy(early.float(), targets) + forward_kl(early, final) for early in depth_logits[:-1]]
    return torch.stack(losses).sum()


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


class StageTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the loss of one stage, computed at the labelled positions only."""

    def __init__(
        self,
        *,
        stage: str,
        teacher: PreTrainedModel | None,
        kd_weight: float,
        temperature: float,
        exit_weight: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.teacher = teacher
        self.kd_weight, self.temperature, self.exit_weight = kd_weight, temperature, exit_weight
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
            loss = uptrain_loss(outputs.logits, targets, taught, self.kd_weight, self.temperature)
            if self.stage == "early-exit":
                loss = loss + self.exit_weight * exit_loss(outputs.depth_logits, targets)
        return (loss, outputs) if return_outputs else loss
