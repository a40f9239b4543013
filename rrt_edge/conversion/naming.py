"""Which stored tensor is which parameter, by transformers' own rules for other and older names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import family_of
from rrt_edge.model.modeling import RecursiveForCausalLM

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Names:
    """What the stored tensors are to a decoder.

    Attributes:
        stored: the stored name of each parameter that is there.
        tied: whether the head is meant to be the embedding.
        unplaced: the stored names that are no parameter, by what they would be called.
        computed: the parameters that transformers computes from several stored tensors.
        left_out: the parts of the model beside the decoder, such as what sees images.
    """

    stored: dict[str, str] = field(default_factory=dict)
    tied: bool = False
    unplaced: dict[str, str] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)
    left_out: tuple[str, ...] = ()


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model that transformers makes of a config, without memory for its weights."""
    with torch.device("meta"):
        if isinstance(config, RecursiveConfig):
            return RecursiveForCausalLM(config)
        if is_nested(config):
            return AutoModelForImageTextToText.from_config(config)
        return family_of(config).causal_model(config)


def is_nested(config: PreTrainedConfig) -> bool:
    """Whether the decoder is a part of a larger model."""
    return not isinstance(config, RecursiveConfig) and getattr(config, "text_config", None) is not None


def names_of(config: PreTrainedConfig, stored: Iterable[str]) -> Names:
    """Match stored names with the parameters of a config's decoder, named as in a decoder that stands alone."""
    model = empty_model(config)
    parameters = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    inside, alone = prefixes(model)
    names = Names(tied=HEAD in model.all_tied_weights_keys)
    left_out: set[str] = set()
    for name in sorted(stored, key=dot_natural_key):
        prefix = model.base_model_prefix
        renamed, computed = rename_source_key(name, renamings, converters, prefix, parameters)
        if renamed not in parameters and name in parameters:
            renamed, computed = rename_source_key(name, [], [], prefix, parameters)
        own = f"{alone}{renamed.removeprefix(inside)}" if renamed.startswith(inside) else renamed
        if renamed not in parameters:
            names.unplaced.setdefault(own, name)
        elif not renamed.startswith(inside) and renamed != HEAD and is_nested(config):
            left_out.add(".".join(renamed.split(".")[:2]))
        elif computed is not None:
            names.computed.add(own)
        else:
            names.stored.setdefault(own, name)
    return Names(names.stored, names.tied, names.unplaced, names.computed, tuple(sorted(left_out)))


def prefixes(model: PreTrainedModel) -> tuple[str, str]:
    """How the names of the decoder's parameters begin in a model, and in the decoder alone."""
    if not is_nested(model.config):
        return "", ""
    decoder = model.get_decoder()
    path = next(path for path, module in model.named_modules() if module is decoder)
    return f"{path}.", f"{family_of(model.config.text_config).prefix}."
