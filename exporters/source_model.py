"""The source of a bundle in torch, float32, read by transformers itself: what a bundle is proved against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.conversion import recursive_config
from rrt_edge.conversion.converted import Converted
from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.conversion.naming import is_nested, prefixes
from rrt_edge.conversion.options import ConvertOptions
from rrt_edge.model.families import family_of
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.training.rounding import Rounding


def source_model(source: Path, manifest: Manifest) -> PreTrainedModel:
    """The model whose logits a bundle should have: the source as it is, or converted as the bundle was.

    One that was trained with the rounding of the bundle in it is rounded: its floats alone are not what was trained.

    Raises:
        BadInputError: the source cannot be read, or is not the bundle's.
    """
    checkpoint, shape = Checkpoint(source), manifest.architecture
    loops, options = shape.loops, ConvertOptions(loops=shape.loops, rank=shape.rank)
    if not checkpoint.is_recursive and family_of(checkpoint.config).looping is not None:
        model: PreTrainedModel = _converted(checkpoint, checkpoint, options)  # transformers has no class for it
    else:
        model = _read(checkpoint)
        if not checkpoint.is_recursive and (shape.loops > 1 or shape.rank):
            options = dataclasses.replace(options, init=manifest.provenance.get("init", "average"))
            model = _converted(LoadedTensors(model), checkpoint, options)
    if isinstance(model, RecursiveForCausalLM):
        loops = model.config.loops
        if model.config.trained_bits == manifest.quantization.bits:
            trained = model.config
            Rounding(model, trained.trained_bits, trained.trained_block_size, trained.trained_eight_bit).round()
    text = model.config.get_text_config()
    source_sizes = (loops, text.num_hidden_layers // loops, text.hidden_size, text.vocab_size)
    bundle_sizes = (shape.loops, shape.layers_per_block, shape.hidden_size, shape.vocabulary)
    if source_sizes != bundle_sizes:
        raise BadInputError(
            f"{source}: is not the source of this bundle: loops, layers per block, hidden size and vocabulary are "
            f"{source_sizes}, the bundle has {bundle_sizes}"
        )
    return model.eval().requires_grad_(False)


@torch.no_grad()
def depth_logits(model: PreTrainedModel, ids: Sequence[int]) -> list[Tensor]:
    """The logits [S, V] of a text at each depth; a model that is not recursive has one."""
    if not isinstance(model, RecursiveForCausalLM):
        return [model(torch.tensor([ids])).logits[0]]
    output = model(torch.tensor([ids]), output_depths=True)
    assert output.depth_logits is not None
    return [logits[0] for logits in output.depth_logits]


class LoadedTensors:
    """The parameters of the decoder in a model that transformers has loaded."""

    def __init__(self, model: PreTrainedModel) -> None:
        inside, alone = prefixes(model)
        self._tensors: dict[str, Tensor] = {
            f"{alone}{name.removeprefix(inside)}" if name.startswith(inside) else name: tensor
            for name, tensor in model.state_dict().items()
        }
        self.config = model.config.get_text_config()
        self.config.tie_word_embeddings = model.get_input_embeddings().weight is model.get_output_embeddings().weight

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        tensor = self._tensors[name]
        assert shape is None or tuple(tensor.shape) == tuple(shape)
        return tensor.to(dtype, copy=True)

    def close(self) -> None:
        """Nothing is let go of: the model has it all."""


def _read(checkpoint: Checkpoint) -> PreTrainedModel:
    """The source as transformers reads it.

    Of a GGUF file it leaves out some of the metadata, so that the config is ours; and of architectures that it does not
    read, the tensors are.
    """
    if checkpoint.gguf is not None:
        return _read_gguf(checkpoint, checkpoint.gguf)
    auto = AutoModelForImageTextToText if is_nested(checkpoint.whole_config) else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(checkpoint.folder, dtype=torch.float32)
    return model


def _read_gguf(checkpoint: Checkpoint, header: GgufHeader) -> PreTrainedModel:
    model: PreTrainedModel
    if header.architecture in GGUF_SUPPORTED_ARCHITECTURES:
        path = header.path.resolve()
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=checkpoint.config, dtype=torch.float32
        )
        return model
    model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensor(name))
    return model


def _converted(
    tensors: LoadedTensors | Checkpoint, checkpoint: Checkpoint, options: ConvertOptions
) -> RecursiveForCausalLM:
    """The recursive model of a source; `checkpoint` says what its weights are rounded to."""
    config = recursive_config(tensors.config, options, None)
    recursive = RecursiveForCausalLM(config)
    made = Converted(tensors, config, checkpoint.dtype)
    with torch.no_grad():
        for name, parameter in recursive.named_parameters():
            if name in made:
                parameter.copy_(made.tensor(name))
    return recursive
