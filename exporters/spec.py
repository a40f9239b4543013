"""`BlockSpec`: the plain facts about a model that the graph is emitted from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rrt_edge.configuration import RecursiveConfig
from rrt_edge.exporters.graph import FLOAT, INT8
from rrt_edge.runtime.errors import BadInputError


@dataclass(frozen=True)
class BlockSpec:
    """Everything the emitter needs to know of a model; a new family is a new way of filling this in."""

    family: str
    loops: int
    layers: int  # in the block
    rank: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens
    norm_epsilon: float
    activation: str
    rotary_frequencies: tuple[float, ...]  # radians per position, one for each pair of a head
    rotary_scale: float  # multiplies cos and sin
    attention_bias: bool
    mlp_bias: bool
    tied_head: bool
    eos_token_ids: tuple[int, ...]
    propagates: bool  # the graph projects keys and values from the states of rows that have left
    slots: int = 8  # sequences a step serves
    kv_bits: int = 32

    @property
    def pasts(self) -> int:
        """Past inputs of each layer: one for each depth in the one-call form, for each slot in the step form."""
        return max(self.loops, self.slots)

    @property
    def kv_planes(self) -> dict[str, tuple[int, int]]:
        """What is kept of a row and head: name, ONNX type, numbers (as `Architecture.kv_planes`)."""
        if self.kv_bits == 32:
            return {"key": (FLOAT, self.head_dim), "value": (FLOAT, self.head_dim)}
        whole, scale = (INT8, self.head_dim), (FLOAT, 1)
        return {"key": whole, "value": whole, "key_scale": scale, "value_scale": scale}

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


def spec_of(config: RecursiveConfig) -> BlockSpec:
    """The spec of a recursive model.

    Raises:
        BadInputError: the family, its activation or its rotary embedding cannot be exported.
    """
    text = config.text_config
    if text.model_type not in SPECS:
        raise BadInputError(f"model_type {text.model_type!r} cannot be exported; supported: {', '.join(SPECS)}")
    return SPECS[text.model_type](config)


def _llama(config: RecursiveConfig) -> BlockSpec:
    text = config.text_config
    if text.hidden_act != "silu":
        raise BadInputError(f"config.json: hidden_act {text.hidden_act!r} cannot be exported; supported: silu")
    frequencies, scale = _rotary(text)
    eos = text.eos_token_id
    return BlockSpec(
        family=text.model_type,
        loops=config.loops,
        layers=config.layers_per_block,
        rank=config.rank,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings,
        norm_epsilon=text.rms_norm_eps,
        activation=text.hidden_act,
        rotary_frequencies=frequencies,
        rotary_scale=scale,
        attention_bias=text.attention_bias,
        mlp_bias=text.mlp_bias,
        tied_head=text.tie_word_embeddings,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        propagates=config.kv_rule == "propagate",
    )


def _rotary(text: PreTrainedConfig) -> tuple[tuple[float, ...], float]:
    kind = text.rope_parameters["rope_type"]
    if kind in ("dynamic", "longrope"):
        raise BadInputError(f"config.json: rope_type {kind!r} changes with the length and cannot be exported yet")
    compute = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    frequencies, scale = compute(text)
    return tuple(float(value) for value in frequencies), float(scale)


SPECS: dict[str, Callable[[RecursiveConfig], BlockSpec]] = {"llama": _llama}
