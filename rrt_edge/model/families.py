"""The base families: which of transformers' classes a recursive model of each is built from, and what is in them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from transformers import PreTrainedConfig

from rrt_edge.runtime.bundle.looping import Looping
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:  # transformers may be in the middle of importing itself
    from transformers import PreTrainedModel

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names for what a layer attends to


@dataclass(frozen=True)
class Linear:
    """A linear of a layer, by its path, and the projections whose rows it holds.

    They stand behind each other; or, `by_head`, those of each head in turn (GPT-NeoX).
    """

    path: str
    parts: tuple[str, ...]
    by_head: bool = False


ATTENTION = (
    Linear("self_attn.q_proj", ("q",)),
    Linear("self_attn.k_proj", ("k",)),
    Linear("self_attn.v_proj", ("v",)),
    Linear("self_attn.o_proj", ("o",)),
)
GATED_MLP = (Linear("mlp.gate_proj", ("gate",)), Linear("mlp.up_proj", ("up",)), Linear("mlp.down_proj", ("down",)))
PRE_NORMS = {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
SANDWICH_NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
OURO_NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "input_layernorm_2",
    "before_mlp": "post_attention_layernorm",
    "after_mlp": "post_attention_layernorm_2",
}
POST_NORMS = {"after_attention": "post_attention_layernorm", "after_mlp": "post_feedforward_layernorm"}
HEAD_NORMS = {"q": "self_attn.q_norm", "k": "self_attn.k_norm"}


Number = Callable[[PreTrainedConfig], float]
MaybeNumber = Callable[[PreTrainedConfig], float | None]
Fact = Callable[[PreTrainedConfig], bool]


def _one(_: PreTrainedConfig) -> float:
    return 1.0


def _root_of_hidden(config: PreTrainedConfig) -> float:
    return float(config.hidden_size**0.5)


def _by_root_of_head(config: PreTrainedConfig) -> float:
    return float(head_shape(config)[2] ** -0.5)


def _by_root_of_scalar(config: PreTrainedConfig) -> float:
    """Return the scale by Gemma 2's field, which its config may leave out."""
    return float((config.query_pre_attn_scalar or head_shape(config)[2]) ** -0.5)


def _never(_: PreTrainedConfig) -> bool:
    return False


def _without(_: PreTrainedConfig) -> None:
    return None


def _number(field: str) -> Number:
    """A field of the config that holds a number."""
    return lambda config: float(getattr(config, field))


def _optional(field: str) -> MaybeNumber:
    """A field of the config that may hold a number."""
    return lambda config: None if getattr(config, field) is None else float(getattr(config, field))


def _whether(field: str) -> Fact:
    """A field of the config that says yes or no."""
    return lambda config: bool(getattr(config, field))


@dataclass(frozen=True)
class Family:
    """The parts of a decoder family.

    What differs from model to model of a family is a function of the config; `activation` and `norm_epsilon` are names
    of its fields.

    The source model names its parameters `{prefix}.layers.{layer}.{path}.*`, `{prefix}.{embedding}.weight`,
    `{prefix}.{final_norm}.*` and, where the head is not tied, `lm_head.weight`.
    """

    module: str  # of transformers.models
    classes: str  # how the names of its classes begin
    layer: str = "DecoderLayer"
    layer_norm: bool = False  # LayerNorm; else RMSNorm
    norm_epsilon: str = "rms_norm_eps"
    norm_offset: float = 0.0  # an RMSNorm multiplies by this much more than its weight
    linears: tuple[Linear, ...] = ATTENTION + GATED_MLP
    norms: Mapping[str, str] = field(default_factory=lambda: PRE_NORMS)  # role -> path
    norms_by_head: bool = True  # q and k are normed head by head; else all heads together
    prefix: str = "model"
    embedding: str = "embed_tokens"
    final_norm: str = "norm"
    cache_argument: str = "past_key_values"  # of the layer's forward
    window: Literal["never", "everywhere", "by layer"] = "never"  # where a sliding_window of the config counts
    rotary_by_type: bool = False  # the rotary embedding differs between full and sliding attention
    activation: str = "hidden_act"
    parallel: Fact = _never  # attention and MLP read the same residual
    bidirectional: Fact = _never  # tokens see those behind them as well
    attention_softcap: MaybeNumber = _without  # the bound that scores are squashed to
    logits_softcap: MaybeNumber = _without
    embedding_scale: Number = _one
    residual_scale: Number = _one  # of what attention and MLP add
    attention_scale: Number = _by_root_of_head
    logits_divisor: Number = _one
    overflows_float16: bool = False  # its hidden states are known to leave float16's range
    looping: Callable[[PreTrainedConfig], Looping] | None = None  # of looped models of others

    def causal_model(self, config: PreTrainedConfig) -> PreTrainedModel:
        """The source model."""
        return self._class("ForCausalLM")(config)

    def decoder_layer(self, config: PreTrainedConfig, index: int) -> nn.Module:
        """A layer of the source model."""
        layer: nn.Module = self._class(self.layer)(config, index)
        return layer

    def norm(self, config: PreTrainedConfig) -> nn.Module:
        """The norm behind the last layer."""
        if self.layer_norm:
            return nn.LayerNorm(config.hidden_size, eps=self.epsilon(config))
        norm: nn.Module = self._class("RMSNorm")(config.hidden_size, eps=self.epsilon(config))
        return norm

    def epsilon(self, config: PreTrainedConfig) -> float:
        """What the norms add to the variance."""
        return float(getattr(config, self.norm_epsilon))

    def rotary(self, config: PreTrainedConfig) -> nn.Module:
        rotary: nn.Module = self._class("RotaryEmbedding")(config)
        return rotary

    @property
    def gated(self) -> bool:
        """Whether the MLP is gated."""
        return any("gate" in linear.parts for linear in self.linears)

    def _class(self, name: str) -> Any:
        module = importlib.import_module(f"transformers.models.{self.module}.modeling_{self.module}")
        return getattr(module, f"{self.classes}{name}")


GEMMA: dict[str, Any] = {  # what all of Gemma's have
    "norm_offset": 1.0,
    "embedding_scale": _root_of_hidden,
    "bidirectional": _whether("use_bidirectional_attention"),
    "overflows_float16": True,
}
GEMMA_2: dict[str, Any] = {  # and those from the second on
    "activation": "hidden_activation",
    "window": "by layer",
    "attention_scale": _by_root_of_scalar,
    "attention_softcap": _optional("attn_logit_softcapping"),
    "logits_softcap": _optional("final_logit_softcapping"),
}


class Ouro(Family):
    """Llama with two norms more in each layer, and an exit gate (arXiv 2510.25741)."""

    def causal_model(self, config: PreTrainedConfig) -> PreTrainedModel:
        model = super().causal_model(config)  # of Llama's classes: for the names of its parameters
        layers = model.model.layers
        for index in range(len(layers)):
            layers[index] = self.decoder_layer(config, index)
        model.model.early_exit_gate = nn.Linear(config.hidden_size, 1)
        return model

    def decoder_layer(self, config: PreTrainedConfig, index: int) -> nn.Module:
        from rrt_edge.model.looped_layers import OuroDecoderLayer

        return OuroDecoderLayer(config, index)


def _of_ouro(config: PreTrainedConfig) -> Looping:
    """Published accuracy by loops (GSM8K: 20, 64, 76, 79): loop 2 is the first whose tokens are worth drafting."""
    return Looping(norm_inside=True, gate="hazard", draft_depth=min(2, config.total_ut_steps))


def _of_nanbeige(config: PreTrainedConfig) -> Looping:
    """It has no gate, and only the last loop was trained to be read."""
    return Looping(not config.skip_loop_final_norm, "none", (config.num_loops,), config.num_loops)


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "Llama"),
    "mistral": Family("mistral", "Mistral", window="everywhere"),
    "qwen2": Family("qwen2", "Qwen2", window="by layer"),
    "qwen3": Family("qwen3", "Qwen3", window="by layer", norms={**PRE_NORMS, **HEAD_NORMS}),
    "gemma": Family("gemma", "Gemma", **GEMMA),
    "gemma2": Family("gemma2", "Gemma2", norms=SANDWICH_NORMS, **GEMMA, **GEMMA_2),
    "gemma3_text": Family(
        "gemma3", "Gemma3", norms={**SANDWICH_NORMS, **HEAD_NORMS}, rotary_by_type=True, **GEMMA, **GEMMA_2
    ),
    "gpt_neox": Family(
        "gpt_neox",
        "GPTNeoX",
        layer="Layer",
        layer_norm=True,
        norm_epsilon="layer_norm_eps",
        linears=(
            Linear("attention.query_key_value", ("q", "k", "v"), by_head=True),
            Linear("attention.dense", ("o",)),
            Linear("mlp.dense_h_to_4h", ("up",)),
            Linear("mlp.dense_4h_to_h", ("down",)),
        ),
        prefix="gpt_neox",
        embedding="embed_in",
        final_norm="final_layer_norm",
        cache_argument="layer_past",
        parallel=_whether("use_parallel_residual"),
    ),
    "phi3": Family(
        "phi3",
        "Phi3",
        window="everywhere",
        linears=(
            Linear("self_attn.qkv_proj", ("q", "k", "v")),
            Linear("self_attn.o_proj", ("o",)),
            Linear("mlp.gate_up_proj", ("gate", "up")),
            Linear("mlp.down_proj", ("down",)),
        ),
    ),
    "olmo2": Family("olmo2", "Olmo2", norms={**POST_NORMS, **HEAD_NORMS}, norms_by_head=False),
    "ouro": Ouro("llama", "Llama", norms=OURO_NORMS, looping=_of_ouro),
    "nanbeige": Family("llama", "Llama", looping=_of_nanbeige),
    "granite": Family(
        "granite",
        "Granite",
        embedding_scale=_number("embedding_multiplier"),
        residual_scale=_number("residual_multiplier"),
        attention_scale=_number("attention_multiplier"),
        logits_divisor=_number("logits_scaling"),
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a source config.

    Raises:
        BadInputError: the model type is not one we know.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    known = ", ".join(sorted(FAMILIES))
    raise BadInputError(f"config.json: model_type {config.model_type!r} is not supported; supported: {known}")


def head_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """(query heads, key and value heads, numbers of a head)."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def part_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """Rows of each projection's weight."""
    heads, kv_heads, size = head_shape(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = heads * size, kv_heads * size
    return {"q": q, "k": kv, "v": kv, "o": hidden, "gate": inner, "up": inner, "down": hidden}


def layer_types(config: PreTrainedConfig) -> list[str]:
    """Return what each layer of the source attends to: `FULL` or `SLIDING`.

    Raises:
        BadInputError: a layer attends in a way that is not known here.
    """
    types = list(getattr(config, "layer_types", None) or [])
    unknown = next((kind for kind in types if kind not in (FULL, SLIDING)), None)
    if unknown is not None:
        raise BadInputError(f"config.json: layer_types names {unknown!r}; supported: {FULL}, {SLIDING}")
    window = family_of(config).window
    if window == "by layer":
        return types
    # A field that transformers' class does not read means nothing.
    everywhere = window == "everywhere" and config.sliding_window is not None
    return [SLIDING if everywhere else FULL] * config.num_hidden_layers


def windows(config: PreTrainedConfig) -> list[int | None]:
    """Return how many tokens each layer of the source attends to, the token itself included; None for all."""
    return [int(config.sliding_window) if kind == SLIDING else None for kind in layer_types(config)]
