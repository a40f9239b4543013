"""What a layer of the block holds for each depth: low-rank adapters, and norms and biases of its own where asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rrt_edge.model.families import Linear


class Depth:
    """Which loop is running, counted from 0: set by the model before each pass, read by every adapter.

    transformers' decoder layers call their linears with the hidden state alone, so the depth cannot travel as an
    argument. The model sets it inside the function that gradient checkpointing runs again.
    """

    def __init__(self) -> None:
        self.index = 0


class DepthLoRALinear(nn.Module):
    """`y = W x + b + B[d] A[d] x` at depth d (Relaxed Recursive Transformers, section 2.3; no alpha / r factor).

    Parameters: `weight` [out, in]; `bias` [out] or None, [loops, out] where each depth has its own; `lora_A`
    [loops, r, in] and `lora_B` [loops, out, r], r at most min(in, out). Rank 0 has no adapter. Where the rows are those
    of several projections, each has an adapter: `lora_A_q`, `lora_B_q`, ..
    """

    def __init__(
        self,
        linear: nn.Linear,
        sizes: Mapping[str, int],
        ranks: Mapping[str, int],
        groups: int,
        loops: int,
        depth: Depth,
        own_bias: bool = False,
    ) -> None:
        """
        Args:
            linear: the one that this stands for.
            sizes: rows of each projection in it.
            ranks: of each projection's adapter, capped at its smaller side.
            groups: in how many equal parts the projections' rows take turns; 1: they stand behind each other.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.sizes, self.groups, self.depth = dict(sizes), groups, depth
        self.ranks = {part: min(ranks[part], size, self.in_features) for part, size in sizes.items()}
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features))
        bias_shape = (loops, self.out_features) if own_bias else (self.out_features,)
        self.bias = nn.Parameter(torch.empty(bias_shape)) if linear.bias is not None else None
        for part, rank in self.ranks.items():
            if rank:
                a, b = self.adapter_names(part)
                self.register_parameter(a, nn.Parameter(torch.empty(loops, rank, self.in_features)))
                self.register_parameter(b, nn.Parameter(torch.empty(loops, sizes[part], rank)))

    def adapter_names(self, part: str) -> tuple[str, str]:
        """Return the names of a projection's A and B."""
        return adapter_names(part, len(self.sizes) > 1)

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        index = self.depth.index
        bias = self.bias[index] if self.bias is not None and self.bias.dim() == 2 else self.bias
        y = F.linear(x, self.weight, bias)
        if not any(self.ranks.values()):
            return y
        return y + self._join([self._adapted(x, part, index) for part in self.sizes])

    def _adapted(self, x: Tensor, part: str, index: int) -> Tensor:
        if not self.ranks[part]:
            return x.new_zeros(*x.shape[:-1], self.sizes[part])
        a, b = (getattr(self, name) for name in self.adapter_names(part))
        return F.linear(F.linear(x, a[index]), b[index])

    def _join(self, parts: list[Tensor]) -> Tensor:
        """[..., size] each -> [..., out], in the order of the weight's rows."""
        if len(parts) == 1:
            return parts[0]
        turns = [part.reshape(*part.shape[:-1], self.groups, -1) for part in parts]
        return torch.cat(turns, dim=-1).flatten(-2)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, ranks={self.ranks}"


def adapter_names(part: str, fused: bool) -> tuple[str, str]:
    """Return the names of a projection's A and B, in a linear of its own or one with others."""
    return (f"lora_A_{part}", f"lora_B_{part}") if fused else ("lora_A", "lora_B")


def split_rows(tensor: Tensor, sizes: Mapping[str, int], groups: int) -> dict[str, Tensor]:
    """The rows of each projection [size, ..] in a weight or bias [out, ..] that holds several."""
    turns = tensor.reshape(groups, -1, *tensor.shape[1:])
    parts = torch.split(turns, [size // groups for size in sizes.values()], dim=1)
    return {part: rows.flatten(0, 1) for part, rows in zip(sizes, parts, strict=True)}


def join_rows(parts: Mapping[str, Tensor], groups: int) -> Tensor:
    """The weight or bias [out, ..] that holds the rows of several projections [size, ..]; undoes `split_rows`."""
    turns = [part.reshape(groups, -1, *part.shape[1:]) for part in parts.values()]
    return torch.cat(turns, dim=1).flatten(0, 1)


class DepthNorms(nn.ModuleList):
    """A norm for each depth, in the place of one."""

    def __init__(self, norms: list[nn.Module], depth: Depth) -> None:
        super().__init__(norms)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self[self.depth.index](x)
        return normed


def relax(
    layer: nn.Module,
    linears: tuple[Linear, ...],
    part_sizes: Mapping[str, int],
    rank_of: Callable[[str, int, int], int],
    heads: int,
    loops: int,
    depth: Depth,
    own_biases: bool,
) -> None:
    """Replace the linears of a layer by `DepthLoRALinear`s of the same shape, weights uninitialised.

    `rank_of(part, in, out)`: the rank of a projection's adapter.
    """
    for linear in linears:
        plain = layer.get_submodule(linear.path)
        assert isinstance(plain, nn.Linear)
        sizes = {part: part_sizes[part] for part in linear.parts}
        ranks = {part: rank_of(part, plain.in_features, size) for part, size in sizes.items()}
        groups = heads if linear.by_head else 1
        set_submodule(layer, linear.path, DepthLoRALinear(plain, sizes, ranks, groups, loops, depth, own_biases))


def set_submodule(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
