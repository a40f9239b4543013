"""Turn a pretrained decoder into a recursive one (Relaxed Recursive Transformers, sections 2.2 and 2.3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from rrt_edge.checkpoint import Checkpoint
from rrt_edge.configuration import RecursiveConfig
from rrt_edge.families import family_of
from rrt_edge.lora import DepthLoRALinear
from rrt_edge.modeling import UNTRAINED_GATE_BIAS, RecursiveForCausalLM
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.files import check_replaceable, new_folder
from rrt_edge.runtime.memory import peak_memory_bytes

Init = Literal["average", "stepwise", "lower"]
DType = Literal["source", "float32", "bfloat16", "float16"]
Progress = Callable[[int, int, str], None]  # (done, total, what)


@dataclass(frozen=True)
class Parameters:
    """Parameter counts; `non_embedding` leaves out the embedding and the LM head, as the paper counts."""

    total: int
    non_embedding: int
    source_non_embedding: int


@dataclass(frozen=True)
class ConvertReport:
    out: str
    loops: int
    layers_per_block: int
    rank: int
    init: str
    parameters: Parameters
    seconds: float
    peak_memory_bytes: int


def convert(
    source: Path | str,
    out: Path | str,
    *,
    loops: int = 2,
    init: Init = "average",
    rank: int = 0,
    dtype: DType = "source",
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a checkpoint into a recursive checkpoint, reading it layer by layer.

    The block starts from the mean of the layers that share it (`average`), from evenly spaced layers (`stepwise`) or
    from the first ones (`lower`). With a rank, each depth's LoRA starts from the truncated SVD of what sharing lost.
    Norms are tied as in the paper, so full rank is exactly the source where its tied norms are equal.

    Args:
        source: a checkpoint folder, or the name of one on the Hugging Face hub.
        out: the folder to write; replaced where it holds a checkpoint made by this function.
        loops: times the block is run; divides the number of layers. 1 shares nothing.
        rank: LoRA rank of every linear at every depth, capped at its smaller side.
        dtype: how the weights are stored.

    Raises:
        BadInputError: the source, an option or `out` is wrong.
        RRTEdgeError: the disk is full.
    """
    started = time.perf_counter()
    out = Path(out)
    if init not in get_args(Init):
        raise BadInputError(f"init {init!r} is not known; choose one of {', '.join(get_args(Init))}")
    check_replaceable(out, "recursive checkpoint", is_recursive_checkpoint)
    checkpoint = Checkpoint(source)
    if checkpoint.is_recursive:
        raise BadInputError(f"{source}: is recursive already; convert a plain checkpoint")
    family_of(checkpoint.config)
    config = RecursiveConfig(text_config=checkpoint.config, loops=loops, rank=rank, init=init)
    stored = checkpoint.dtype if dtype == "source" else getattr(torch, dtype)
    with torch.device("meta"):
        model = RecursiveForCausalLM(config)
    with new_folder(out, "recursive checkpoint", is_recursive_checkpoint) as folder:
        state = dict(recursive_state(checkpoint, model, stored, progress))
        model.load_state_dict(state, assign=True, strict=False)
        model.tie_weights()
        model.generation_config = _generation_config(checkpoint)
        model.save_pretrained(folder)
        checkpoint.copy_companions(folder)
    return ConvertReport(
        out=str(out),
        loops=loops,
        layers_per_block=config.layers_per_block,
        rank=rank,
        init=init,
        parameters=count_parameters(model),
        seconds=round(time.perf_counter() - started, 3),
        peak_memory_bytes=peak_memory_bytes(),
    )


def recursive_state(
    checkpoint: Checkpoint, model: RecursiveForCausalLM, dtype: torch.dtype, progress: Progress | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the recursive model's tensors by name, computed in float32 from a source checkpoint."""
    config, prefix = model.config, family_of(model.config.text_config).prefix
    yield "model.embed_tokens.weight", checkpoint.tensor(f"{prefix}.embed_tokens.weight").to(dtype)
    yield "model.norm.weight", checkpoint.tensor(f"{prefix}.norm.weight").to(dtype)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", checkpoint.tensor("lm_head.weight").to(dtype)
    if model.exit_gate is not None:
        yield "exit_gate.weight", torch.zeros(model.exit_gate.weight.shape, dtype=dtype)
        yield "exit_gate.bias", torch.full(model.exit_gate.bias.shape, UNTRAINED_GATE_BIAS, dtype=dtype)

    for k, layer in enumerate(model.model.block):
        sources = [loop * config.layers_per_block + k for loop in range(config.loops)]
        chosen = shared_source(config, k)
        linears = {name: module for name, module in layer.named_modules() if isinstance(module, DepthLoRALinear)}
        for parameter in _shared_parameters(layer):
            tied = [checkpoint.tensor(f"{prefix}.layers.{index}.{parameter}") for index in sources]
            if chosen is None:
                shared = torch.stack(tied).mean(dim=0)
            else:
                shared = checkpoint.tensor(f"{prefix}.layers.{chosen}.{parameter}")
            shared = shared.to(dtype)
            yield f"model.block.{k}.{parameter}", shared
            linear = linears.get(parameter.removesuffix(".weight"))
            if linear is not None and linear.rank:
                residuals = [weight - shared.float() for weight in tied]
                a, b = zip(*(residual_factors(residual, linear.rank) for residual in residuals), strict=True)
                name = parameter.removesuffix(".weight")
                yield f"model.block.{k}.{name}.lora_A", torch.stack(a).to(dtype)
                yield f"model.block.{k}.{name}.lora_B", torch.stack(b).to(dtype)
        if progress is not None:
            progress(k + 1, config.layers_per_block, "layers")


def _shared_parameters(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters() if not name.endswith((".lora_A", ".lora_B"))]


def shared_source(config: RecursiveConfig, k: int) -> int | None:
    """The source layer that block layer `k` starts from, or None for the mean of the layers it replaces."""
    if config.init == "average":
        return None
    if config.init == "lower":
        return k
    layers = config.text_config.num_hidden_layers
    # Section 2.2: evenly spaced, first and last kept; np.round rounds halves to even.
    return int(np.round(np.linspace(0, layers - 1, config.layers_per_block))[k])


def residual_factors(residual: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] whose product is the best rank-r approximation of `residual` [out, in].

    `U, S, Vt = svd(residual)`, B = U_r S_r, A = Vt_r (section 2.3). Where the residual is zero, A is Gaussian and B is
    zero, so that both can train.
    """
    if not residual.any():
        generator = torch.Generator().manual_seed(0)
        gaussian = torch.randn(rank, residual.shape[1], generator=generator) / residual.shape[1] ** 0.5
        return gaussian, torch.zeros(residual.shape[0], rank)
    u, s, vt = torch.linalg.svd(residual, full_matrices=False)
    return vt[:rank].contiguous(), (u[:, :rank] * s[:rank]).contiguous()


def count_parameters(model: RecursiveForCausalLM) -> Parameters:
    """Count from shapes alone; works on the meta device. The exit gate is left out: it is not the paper's."""
    config = model.config.text_config
    embedding = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    inner = [(name, p.numel()) for name, p in model.model.named_parameters() if "embed_tokens" not in name]
    non_embedding = sum(count for _, count in inner)
    one_layer = sum(p.numel() for name, p in model.model.block[0].named_parameters() if ".lora_" not in name)
    final_norm = sum(p.numel() for p in model.model.norm.parameters())
    source = one_layer * config.num_hidden_layers + final_norm
    return Parameters(embedding + non_embedding, non_embedding, source)


def is_recursive_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a recursive checkpoint (and may be replaced by another)."""
    try:
        return '"model_type": "rrt"' in (folder / "config.json").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    if (checkpoint.folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(checkpoint.folder)
    return GenerationConfig.from_model_config(checkpoint.config)
