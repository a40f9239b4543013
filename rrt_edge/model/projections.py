"""The projections of a layer as the exported graph multiplies by them: apart, constant factors folded in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from rrt_edge.model.families import Linear, family_of, head_shape, part_sizes
from rrt_edge.model.lora import adapter_names, join_rows, split_rows
from rrt_edge.quantisation.blocks import Quantized
from rrt_edge.quantisation.wide import Adapted, Float, Matrix

Read = Callable[[str], Matrix]  # a matrix by its name in the recursive model
INTO_RESIDUAL = ("o", "down")  # whose outputs are added to the residual stream


class NamedTensors(Protocol):
    """The parameters of a recursive model by name."""

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str) -> Tensor: ...


def projections(
    tensors: NamedTensors, text: PreTrainedConfig, layer: str, matrix: Read, residual_scale: float
) -> dict[str, Adapted]:
    """The projections of a layer of the block, by part.

    Args:
        text: the source model's config.
        layer: how the names of its tensors begin.
        matrix: reads a linear's weight.
        residual_scale: what multiplies the outputs that are added to the residual stream.
    """
    family = family_of(text)
    parts: dict[str, Adapted] = {}
    for linear in family.linears:
        parts.update(_of_linear(tensors, text, linear, f"{layer}.{linear.path}", matrix))
    for added in INTO_RESIDUAL:
        parts[added] = _scaled(parts[added], residual_scale)
    return parts


def tensors_of(
    parts: Mapping[str, Adapted], text: PreTrainedConfig, layer: str, residual_scale: float
) -> Iterator[tuple[str, Tensor]]:
    """The names and values of the weights and adapters that `projections` makes such parts of; no part is in blocks."""
    for linear in family_of(text).linears:
        path, groups = f"{layer}.{linear.path}", head_shape(text)[0] if linear.by_head else 1
        weights = {}
        for part in linear.parts:
            scale = residual_scale if part in INTO_RESIDUAL else 1.0
            own = parts[part]
            assert not isinstance(own.weight, Quantized)
            weights[part] = _unscaled(own.weight, scale)
            if own.a is not None and own.b is not None:
                a, b = adapter_names(part, len(linear.parts) > 1)
                yield f"{path}.{a}", torch.from_numpy(own.a)
                yield f"{path}.{b}", _unscaled(own.b, scale)
        yield f"{path}.weight", join_rows(weights, groups)


def _unscaled(array: Float, scale: float) -> Tensor:
    return torch.from_numpy(array if scale == 1 else array / np.float32(scale))


def _of_linear(
    tensors: NamedTensors, text: PreTrainedConfig, linear: Linear, path: str, matrix: Read
) -> dict[str, Adapted]:
    """The projections whose rows one linear of the checkpoint holds."""
    sizes = {part: part_sizes(text)[part] for part in linear.parts}
    groups = head_shape(text)[0] if linear.by_head else 1
    weights = _split(matrix(f"{path}.weight"), sizes, groups)
    biases: dict[str, torch.Tensor] = {}
    if f"{path}.bias" in tensors:
        bias = tensors.tensor(f"{path}.bias")
        biases = {part: rows.movedim(0, -1) for part, rows in split_rows(bias.movedim(-1, 0), sizes, groups).items()}
    own = {}
    for part in linear.parts:
        names = [f"{path}.{name}" for name in adapter_names(part, len(linear.parts) > 1)]
        a, b = (tensors.tensor(name).numpy() if name in tensors else None for name in names)
        own[part] = Adapted(weights[part], biases[part].numpy() if biases else None, a, b)
    return own


def _split(matrix: Matrix, sizes: Mapping[str, int], groups: int) -> dict[str, Matrix]:
    """The rows of each projection."""
    if not isinstance(matrix, Quantized):
        return {part: rows.numpy() for part, rows in split_rows(torch.from_numpy(matrix), sizes, groups).items()}
    packed = split_rows(torch.from_numpy(matrix.packed), sizes, groups)
    scales = split_rows(torch.from_numpy(matrix.scales), sizes, groups)
    return {part: Quantized(packed[part].numpy(), scales[part].numpy(), matrix.bits, matrix.columns) for part in sizes}


def _scaled(linear: Adapted, scale: float) -> Adapted:
    """A linear whose output is multiplied by a constant."""
    if scale == 1:
        return linear
    bias, b = (None if array is None else array * scale for array in (linear.bias, linear.b))
    weight = linear.weight
    scaled = replace(weight, scales=weight.scales * scale) if isinstance(weight, Quantized) else weight * scale
    return Adapted(scaled, bias, linear.a, b)
