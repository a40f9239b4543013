"""`BlockSpec`: the plain facts about a model that the graph is emitted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import Family, family_of, head_shape, layer_types, part_sizes, windows
from rrt_edge.runtime.bundle.architecture import Architecture, Windows
from rrt_edge.runtime.bundle.looping import OWN_LOOPING, UNLOOPED, Looping
from rrt_edge.runtime.errors import BadInputError

Fact = TypeVar("Fact")
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
}  # fmt: skip


@dataclass(frozen=True)
class Rotary:
    """Radians per position for each pair of a head that is rotated, and what multiplies cos and sin.

    `long_frequencies` stand in their place where the context is longer than the model first learned (LongRoPE).
    """

    frequencies: tuple[float, ...]
    scale: float
    long_frequencies: tuple[float, ...] | None = None


@dataclass(frozen=True)
class BlockSpec:
    """Everything the emitter needs to know of a model; a new family is a new way of filling this in."""

    family: str
    loops: int
    layers: int  # in the block
    rank: int  # the largest of any linear
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens
    short_context: int | None  # tokens up to which the short frequencies hold, where there are long ones
    layer_norm: bool  # else RMSNorm
    norm_epsilon: float
    norms_by_head: bool  # where q and k are normed: head by head, else all heads together
    activation: str  # silu, gelu, gelu_tanh or relu
    gated: bool
    parallel: bool  # attention and MLP read the same residual
    embedding_scale: float
    residual_scale: float  # of what attention and MLP add
    attention_scale: float
    attention_softcap: float | None
    logits_scale: float
    logits_softcap: float | None
    windows: Windows  # tokens a layer attends to, by loop and layer; None: all
    rotaries: tuple[Rotary, ...]
    rotary_of: tuple[tuple[int, ...], ...]  # which of them, by loop and layer
    bias_numbers: int  # in a layer of the source
    norm_numbers: int
    tied_head: bool
    overflows_float16: bool
    eos_token_ids: tuple[int, ...]
    looping: Looping
    propagates: bool  # the graph projects keys and values from the states of rows that have left
    slots: int = 8  # sequences a step serves
    kv_bits: int = 32

    @property
    def pasts(self) -> int:
        """Past inputs of each layer: one for each depth in the one-call form, for each slot in the step form."""
        return max(self.loops, self.slots)

    @cached_property
    def architecture(self) -> Architecture:
        """The architecture for the bundle's manifest, which decides the graph's inputs and outputs."""
        return Architecture(
            family=self.family,
            loops=self.loops,
            layers_per_block=self.layers,
            rank=self.rank,
            hidden_size=self.hidden,
            attention_heads=self.heads,
            key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocabulary=self.vocabulary,
            context_length=self.context,
            pasts=self.pasts,
            kv_bits=self.kv_bits,
            windows=self.windows if any(any(row) for row in self.windows) else None,
            short_context=self.short_context,
            looped=None if self.looping in (OWN_LOOPING, UNLOOPED) else self.looping,
        )

    @property
    def kv_groups(self) -> tuple[tuple[int, ...], ...]:
        """The layers that hold the same rows at every depth, and see them through the same mask."""
        return self.architecture.kv_groups

    def kv_group(self, layer: int) -> int:
        return next(index for index, layers in enumerate(self.kv_groups) if layer in layers)

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


def spec_of(config: RecursiveConfig) -> BlockSpec:
    """The spec of a recursive model.

    Raises:
        BadInputError: the family, its activation, its rotary embedding or its attention cannot be exported.
    """
    text = config.text_config
    family = family_of(text)
    if family.bidirectional(text):
        raise BadInputError("config.json: use_bidirectional_attention cannot be exported; tokens see those before them")
    heads, kv_heads, head_dim = head_shape(text)
    rotaries, rotary_of_layer = _rotaries(text, family)
    biases, norms = _vectors(text, family)
    eos = text.eos_token_id
    return BlockSpec(
        family=text.model_type,
        loops=config.loops,
        layers=config.layers_per_block,
        rank=_largest_rank(config, family),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings,
        short_context=_short_context(text),
        layer_norm=family.layer_norm,
        norm_epsilon=family.epsilon(text),
        norms_by_head=family.norms_by_head,
        activation=_activation(text, family.activation),
        gated=family.gated,
        parallel=family.parallel(text),
        embedding_scale=family.embedding_scale(text),
        residual_scale=family.residual_scale(text),
        attention_scale=family.attention_scale(text),
        attention_softcap=family.attention_softcap(text),
        logits_scale=1 / family.logits_divisor(text),
        logits_softcap=family.logits_softcap(text),
        windows=_by_loop(windows(text), config.loops),
        rotaries=rotaries,
        rotary_of=_by_loop(rotary_of_layer, config.loops),
        bias_numbers=biases,
        norm_numbers=norms,
        tied_head=text.tie_word_embeddings,
        overflows_float16=family.overflows_float16,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        looping=config.looping,
        propagates=config.rule.propagates,
    )


def _by_loop(facts: Sequence[Fact], loops: int) -> tuple[tuple[Fact, ...], ...]:
    """Return what is said of each layer of the source, by loop and layer of the block."""
    size = len(facts) // loops
    return tuple(tuple(facts[loop * size : (loop + 1) * size]) for loop in range(loops))


def _activation(text: PreTrainedConfig, field: str) -> str:
    name = getattr(text, field)
    if name not in ACTIVATIONS:
        raise BadInputError(f"config.json: {field} {name!r} cannot be exported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _largest_rank(config: RecursiveConfig, family: Family) -> int:
    text = config.text_config
    sizes, hidden = part_sizes(text), text.hidden_size
    inputs = {"o": sizes["q"], "down": text.intermediate_size}
    parts = [part for linear in family.linears for part in linear.parts]
    return max(config.rank_of(part, inputs.get(part, hidden), sizes[part]) for part in parts)


def _vectors(text: PreTrainedConfig, family: Family) -> tuple[int, int]:
    """Numbers in the biases and in the norms of a source layer."""
    with torch.device("meta"):
        layer = family.decoder_layer(text, 0)
    biases = {f"{linear.path}.bias" for linear in family.linears}
    vectors = [(name, parameter.numel()) for name, parameter in layer.named_parameters() if parameter.dim() == 1]
    in_biases = sum(count for name, count in vectors if name in biases)
    return in_biases, sum(count for _, count in vectors) - in_biases


def _short_context(text: PreTrainedConfig) -> int | None:
    parameters = text.rope_parameters
    return int(parameters["original_max_position_embeddings"]) if parameters.get("rope_type") == "longrope" else None


def _rotaries(text: PreTrainedConfig, family: Family) -> tuple[tuple[Rotary, ...], list[int]]:
    """The rotary embeddings there are, and which of them each layer of the source has."""
    kinds = layer_types(text)
    module: Any = family.rotary(text)
    by_type = text.rope_parameters if family.rotary_by_type else {"": text.rope_parameters}
    for parameters in by_type.values():
        if parameters and parameters["rope_type"] == "dynamic":
            raise BadInputError("config.json: rope_type 'dynamic' changes with the length and cannot be exported")
    if not family.rotary_by_type:
        long = None
        if text.rope_parameters["rope_type"] == "longrope":
            beyond = text.rope_parameters["original_max_position_embeddings"] + 1
            long = _floats(ROPE_INIT_FUNCTIONS["longrope"](text, seq_len=beyond)[0])
        return (Rotary(_floats(module.inv_freq), float(module.attention_scaling), long),), [0] * len(kinds)
    distinct = sorted(set(kinds))
    rotaries = [
        Rotary(_floats(module.get_buffer(f"{kind}_inv_freq")), float(getattr(module, f"{kind}_attention_scaling")))
        for kind in distinct
    ]
    return tuple(rotaries), [distinct.index(kind) for kind in kinds]


def _floats(tensor: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in tensor)
