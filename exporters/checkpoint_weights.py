"""Reads a recursive model into what the emitter takes: projections apart, constant factors folded in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rrt_edge.conversion.checkpoint import Tensors
from rrt_edge.exporters.block import LayerWeights, Norm
from rrt_edge.exporters.embedding_and_head import GateWeights, OuterWeights
from rrt_edge.exporters.linears import Adapted, Matrix
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import Family, Linear, family_of, head_shape, part_sizes
from rrt_edge.model.lora import adapter_names, split_rows
from rrt_edge.quantisation.blocks import Quantized, Rows

Float = NDArray[np.float32]
Read = Callable[[str], Matrix]  # a matrix by its name in the recursive model
ReadRows = Callable[[str], Matrix | Rows]
GATE = ("inner", "inner_bias", "outer", "bias")
NOTHING = np.zeros(0, np.float32)


class RecursiveTensors(Tensors, Protocol):
    """The parameters of a recursive model, and its config."""

    @property
    def config(self) -> RecursiveConfig: ...


class Streamed:
    """A matrix [out, in] that stays in the type in which it is stored; rows are float32 where they are asked for."""

    def __init__(self, stored: torch.Tensor) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = tuple(stored.shape)

    def __getitem__(self, rows: slice) -> Float:
        return self._stored[rows].float().numpy()


def layer_weights(checkpoint: RecursiveTensors, spec: BlockSpec, matrix: Read) -> Iterator[LayerWeights]:
    """The block's layers, read one by one; `matrix` reads a linear's weight."""
    family = family_of(checkpoint.config.text_config)
    for index in range(spec.layers):
        prefix = f"model.block.{index}"
        parts: dict[str, Adapted] = {}
        for linear in family.linears:
            parts.update(_projections(checkpoint, linear, f"{prefix}.{linear.path}", matrix))
        for added in ("o", "down"):
            parts[added] = _scaled(parts[added], spec.residual_scale)
        norms = {role: _norm(checkpoint, family, spec, f"{prefix}.{path}") for role, path in family.norms.items()}
        yield LayerWeights(
            norms=norms,
            q=parts["q"],
            k=parts["k"],
            v=parts["v"],
            o=parts["o"],
            gate=parts.get("gate"),
            up=parts["up"],
            down=parts["down"],
        )
        checkpoint.close()


def outer_weights(checkpoint: RecursiveTensors, spec: BlockSpec, matrix: ReadRows) -> OuterWeights:
    gate = [checkpoint.tensor(f"exit_gate.{name}").numpy() for name in GATE] if spec.loops > 1 else [NOTHING] * 4
    return OuterWeights(
        embedding=matrix("model.embed_tokens.weight"),
        norm=_norm(checkpoint, family_of(checkpoint.config.text_config), spec, "model.norm"),
        head=None if spec.tied_head else matrix("lm_head.weight"),
        gate=GateWeights(*gate),
    )


def _projections(checkpoint: RecursiveTensors, linear: Linear, path: str, matrix: Read) -> dict[str, Adapted]:
    """The projections whose rows one linear of the checkpoint holds."""
    text = checkpoint.config.text_config
    sizes = {part: part_sizes(text)[part] for part in linear.parts}
    groups = head_shape(text)[0] if linear.by_head else 1
    weights = _split(matrix(f"{path}.weight"), sizes, groups)
    biases: dict[str, torch.Tensor] = {}
    if f"{path}.bias" in checkpoint:
        bias = checkpoint.tensor(f"{path}.bias")
        biases = {part: rows.movedim(0, -1) for part, rows in split_rows(bias.movedim(-1, 0), sizes, groups).items()}
    projections = {}
    for part in linear.parts:
        names = [f"{path}.{name}" for name in adapter_names(part, len(linear.parts) > 1)]
        a, b = (checkpoint.tensor(name).numpy() if name in checkpoint else None for name in names)
        projections[part] = Adapted(weights[part], biases[part].numpy() if biases else None, a, b)
    return projections


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


def _norm(checkpoint: RecursiveTensors, family: Family, spec: BlockSpec, path: str) -> Norm:
    """A norm, or those of all depths stacked."""

    def read(name: str) -> Float | None:
        if f"{path}.{name}" in checkpoint:
            return np.asarray(checkpoint.tensor(f"{path}.{name}").numpy())
        own = [f"{path}.{loop}.{name}" for loop in range(spec.loops)]
        return np.stack([checkpoint.tensor(depth).numpy() for depth in own]) if own[0] in checkpoint else None

    weight = read("weight")
    assert weight is not None
    return Norm(weight + np.float32(family.norm_offset), read("bias"))
