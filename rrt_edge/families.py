"""The base families: which of transformers' classes a recursive model of each is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig
from transformers.models.llama import modeling_llama

from rrt_edge.runtime.errors import BadInputError


@dataclass(frozen=True)
class Family:
    """The parts of a decoder family.

    The source checkpoint names its tensors `{prefix}.layers.{layer}.*`, `{prefix}.embed_tokens.weight`,
    `{prefix}.norm.weight` and, where the head is not tied, `lm_head.weight`.
    """

    decoder_layer: Callable[[PreTrainedConfig, int], nn.Module]
    norm: Callable[[PreTrainedConfig], nn.Module]
    rotary: Callable[[PreTrainedConfig], nn.Module]
    prefix: str = "model"


FAMILIES: dict[str, Family] = {
    "llama": Family(
        decoder_layer=modeling_llama.LlamaDecoderLayer,
        norm=lambda config: modeling_llama.LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps),
        rotary=modeling_llama.LlamaRotaryEmbedding,
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a source config.

    Raises:
        BadInputError: the model type is not one we know.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        message = f"config.json: model_type {config.model_type!r} is not supported; supported: {known}"
        raise BadInputError(message) from None
