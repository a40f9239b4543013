"""Reads a recursive model into what the emitter takes: the block layer by layer, and what is around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rrt_edge.conversion.checkpoint import Tensors
from rrt_edge.conversion.side_by_side import SideBySide
from rrt_edge.exporters.block import LayerWeights, Norm
from rrt_edge.exporters.embedding_and_head import GateWeights, HazardWeights, OuterWeights
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import Family, family_of
from rrt_edge.model.projections import Read, projections
from rrt_edge.quantisation.blocks import Rows
from rrt_edge.quantisation.wide import Matrix
from rrt_edge.runtime.bundle.looping import GateKind

Float = NDArray[np.float32]
ReadRows = Callable[[str], Matrix | Rows]


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
        parts = projections(checkpoint, checkpoint.config.text_config, prefix, matrix, spec.residual_scale)
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


def final_norm(weights: RecursiveTensors) -> nn.Module:
    """The norm behind the block, as torch runs it."""
    text = weights.config.text_config
    norm: nn.Module = family_of(text).norm(text).eval().requires_grad_(False)
    norm.load_state_dict({name: weights.tensor(f"model.norm.{name}") for name in norm.state_dict()})
    return norm


def side_by_side(weights: RecursiveTensors, texts: Sequence[Sequence[int]], embedding: torch.Tensor) -> SideBySide:
    """The texts before the first layer of a recursive model and of one made from it."""
    norm = final_norm(weights) if weights.config.norm_inside else None
    return SideBySide(weights.config, texts, embedding, norm)


def outer_weights(checkpoint: RecursiveTensors, spec: BlockSpec, matrix: ReadRows) -> OuterWeights:
    kinds: dict[GateKind, type[GateWeights] | type[HazardWeights]] = {"mlp": GateWeights, "hazard": HazardWeights}
    kind = kinds.get(spec.looping.gate)
    names = () if kind is None else [field.name for field in dataclasses.fields(kind)]
    gate = {name: checkpoint.tensor(f"exit_gate.{name}").numpy() for name in names}
    return OuterWeights(
        embedding=partial(matrix, "model.embed_tokens.weight"),
        norm=_norm(checkpoint, family_of(checkpoint.config.text_config), spec, "model.norm"),
        head=None if spec.tied_head else partial(matrix, "lm_head.weight"),
        gate=None if kind is None else kind(**gate),
    )


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
