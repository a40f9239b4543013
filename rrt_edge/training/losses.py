"""The losses of the training stages (Relaxed Recursive Transformers, sections 3.1 and 3.7, appendices E and J)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rrt_edge.training.options import Divergence


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
        loss = F.kl_div(q, p, log_target=True, reduction="batchmean")
    elif kind == "reverse-kl":
        loss = F.kl_div(p, q, log_target=True, reduction="batchmean")
    else:
        mixture = torch.logaddexp(p, q) - math.log(2)
        both = [F.kl_div(mixture, side, log_target=True, reduction="batchmean") for side in (p, q)]
        loss = 0.5 * (both[0] + both[1])
    return loss * temperature**2


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], kept: Tensor) -> Tensor:
    """Mean squared distance of hidden states [B, S, H] from the teacher's, as a share of their squared length.

    Of layers one by one, at the positions `kept`, bool [B, S]. As a share, since a few tokens' states are a thousand
    times as long as the others' (the first one's above all), and deeper layers' longer than earlier ones'.
    """
    shares = [
        ((ours.float() - theirs.float())[kept].square().sum(-1) / theirs.float()[kept].square().sum(-1)).mean()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(shares).mean()


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


def draw_exits(predicts: Tensor, loops: int, by_gate: float = 0.0) -> Tensor:
    """An exit depth for each token [B, S]: any from 1 to `loops` where `predicts`, else `loops` as in prompts.

    Of each text a share leaves, drawn for it: of some hardly any token, of others nearly all. A share `by_gate` of all
    gets 0: they leave where the gate says so.
    """
    leaves = torch.rand(predicts.shape, device=predicts.device) < torch.rand(len(predicts), 1, device=predicts.device)
    drawn = torch.randint(1, max(loops, 2), predicts.shape, device=predicts.device).where(leaves, loops)
    if by_gate:
        drawn = drawn.where(torch.rand(predicts.shape, device=predicts.device) >= by_gate, 0)
    return torch.where(predicts, drawn, loops)


def gate_loss(gate_logits: Tensor, depth_logits: tuple[Tensor, ...]) -> Tensor:
    """Binary cross entropy of the gate [N, loops - 1] against "this depth's argmax is the final argmax"."""
    final = depth_logits[-1].argmax(dim=-1)
    agrees = torch.stack([(early.argmax(dim=-1) == final).float() for early in depth_logits[:-1]], dim=-1)
    return F.binary_cross_entropy_with_logits(gate_logits.float(), agrees)
