"""A linear layer shared by all depths, with a low-rank adapter for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Depth:
    """Which loop is running, counted from 0: set by the model before each pass, read by every adapter.

    transformers' decoder layers call their linears with the hidden state alone, so the depth cannot travel as an
    argument. The model sets it inside the function that gradient checkpointing runs again.
    """

    def __init__(self) -> None:
        self.index = 0


class DepthLoRALinear(nn.Module):
    """`y = W x + b + B[d] A[d] x` at depth d (Relaxed Recursive Transformers, section 2.3; no alpha / r factor).

    Parameters: `weight` [out, in], `bias` [out] or None, `lora_A` [loops, r, in], `lora_B` [loops, out, r], where r is
    at most min(in, out). Rank 0 has no adapter.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, loops: int, rank: int, depth: Depth) -> None:
        super().__init__()
        rank = min(rank, in_features, out_features)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.lora_A = nn.Parameter(torch.empty(loops, rank, in_features)) if rank else None
        self.lora_B = nn.Parameter(torch.empty(loops, out_features, rank)) if rank else None
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        y = F.linear(x, self.weight, self.bias)
        if self.lora_A is None or self.lora_B is None:
            return y
        index = self.depth.index
        return y + F.linear(F.linear(x, self.lora_A[index]), self.lora_B[index])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def relax_linears(module: nn.Module, loops: int, rank: int, depth: Depth) -> None:
    """Replace every `nn.Linear` inside `module` by a `DepthLoRALinear` of the same shape, weights uninitialised."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            relaxed = DepthLoRALinear(child.in_features, child.out_features, child.bias is not None, loops, rank, depth)
            setattr(module, name, relaxed)
        else:
            relax_linears(child, loops, rank, depth)
