"""Exit gates: what says, after each loop but the last, whether a token may leave there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from rrt_edge.model.configuration import RecursiveConfig

UNTRAINED_BIAS = -4.0  # sigmoid(-4) = 0.02: below any sensible threshold
GATE_WIDTH = 64  # of an exit gate's inner layer; 32 is as good, and both cost nothing beside a block
LEAST_STAY = -1e-12  # of the logarithm of a probability of staying, so that its logit is finite


class Gate(ABC, nn.Module):
    """What a gate of any kind does; its value at a depth is the sigmoid of its logit there."""

    @abstractmethod
    def reset(self) -> None:
        """Make it untrained: it never asks to leave, and can learn to."""

    @abstractmethod
    def at(self, normed: Sequence[Tensor], index: int) -> Tensor:
        """The logits [...] after loop `index`, from the normed states [..., H] after the loops up to it, from 0 on."""


class ExitGate(Gate):
    """Predicts, from the normed hidden state after each loop but the last, that this depth's token is full depth's.

    `sigmoid(outer[d] . silu(inner[d] x + inner_bias[d]) + bias[d])` after loop d: inner [loops - 1, width, H]. A linear
    gate is worse than softmax's largest probability, which costs a whole LM head; this one is better
    (benchmarks/gate.py).
    """

    def __init__(self, hidden: int, depths: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.empty(depths, GATE_WIDTH, hidden))
        self.inner_bias = nn.Parameter(torch.empty(depths, GATE_WIDTH))
        self.outer = nn.Parameter(torch.empty(depths, GATE_WIDTH))
        self.bias = nn.Parameter(torch.empty(depths))

    def reset(self) -> None:
        init.normal_(self.inner, std=self.inner.shape[-1] ** -0.5)
        init.zeros_(self.inner_bias)
        init.zeros_(self.outer)
        init.constant_(self.bias, UNTRAINED_BIAS)

    def at(self, normed: Sequence[Tensor], index: int) -> Tensor:
        inner = F.silu(F.linear(normed[index], self.inner[index], self.inner_bias[index]))
        logits: Tensor = inner @ self.outer[index] + self.bias[index]
        return logits


class HazardGate(Gate):
    """The probability of having left at a depth or before; `lambda = sigmoid(w . x + b)` is that of leaving there.

    `P_t = 1 - prod_{j <= t} (1 - lambda_j)`, the same w [1, H] and b [1] after all loops (Ouro, arXiv 2510.25741).
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden))
        self.bias = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        init.normal_(self.weight, std=0.1 * self.weight.shape[-1] ** -0.5)
        init.constant_(self.bias, UNTRAINED_BIAS)

    def at(self, normed: Sequence[Tensor], index: int) -> Tensor:
        leaving = F.linear(torch.stack(list(normed[: index + 1])).float(), self.weight.float(), self.bias.float())
        staying = F.logsigmoid(-leaving[..., 0]).sum(0).clamp(max=LEAST_STAY)  # the logarithm of 1 - P
        return torch.log(-torch.expm1(staying)) - staying


def make_gate(config: RecursiveConfig) -> Gate | None:
    """The gate of a recursive model, where it has one."""
    hidden = config.text_config.hidden_size
    if config.loops == 1 or config.gate_kind == "none":
        return None
    return HazardGate(hidden) if config.gate_kind == "hazard" else ExitGate(hidden, config.loops - 1)
