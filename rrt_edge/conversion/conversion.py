"""Turn a pretrained decoder into a recursive one (Relaxed Recursive Transformers, sections 2.2 and 2.3)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.checks import check_conversion
from rrt_edge.conversion.folder import SINGLE, is_recursive_checkpoint
from rrt_edge.conversion.options import ConvertOptions, DType, Init, LoRAInit
from rrt_edge.conversion.tensor_file import TensorFile
from rrt_edge.model.card import write_card
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import Family, family_of
from rrt_edge.model.lora import DepthLoRALinear, DepthNorms, split_rows
from rrt_edge.model.modeling import ExitGate, RecursiveForCausalLM
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.files import new_folder
from rrt_edge.runtime.system.memory import peak_memory_bytes
from rrt_edge.runtime.system.progress import Progress


@dataclass(frozen=True)
class Parameters:
    """Parameter counts; `non_embedding` leaves out the embedding and the LM head, as the paper counts."""

    total: int
    non_embedding: int
    source_non_embedding: int


@dataclass(frozen=True)
class Kept:
    """How much of what sharing lost the adapters of a projection keep, as shares of energy (sum of squares).

    `kept` of all its layers together, `worst` of the source layer `worst_layer`.
    """

    projection: str
    kept: float
    worst: float
    worst_layer: int


class Energies:
    """Collects the energy of residuals, and of the adapters that stand for them."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, tuple[float, float]]] = {}

    def add(self, projection: str, layer: int, kept: float, lost: float) -> None:
        self._found.setdefault(projection, {})[layer] = (kept, lost)

    def table(self) -> tuple[Kept, ...]:
        """A row for each projection whose layers differ."""
        rows = []
        for projection, layers in self._found.items():
            shares = {layer: kept / lost for layer, (kept, lost) in layers.items() if lost}
            if shares:
                worst = min(shares, key=lambda layer: shares[layer])
                kept, lost = (sum(column) for column in zip(*layers.values(), strict=True))
                rows.append(Kept(projection, kept / lost, shares[worst], worst))
        return tuple(rows)


@dataclass(frozen=True)
class ConvertReport:
    out: str
    loops: int
    layers_per_block: int
    rank: float
    component_ranks: dict[str, float]
    init: str
    lora_init: str
    own_vectors: bool
    kept: tuple[Kept, ...]
    parameters: Parameters
    seconds: float
    peak_memory_bytes: int


def convert(
    source: Path | str,
    out: Path | str,
    *,
    loops: int = 2,
    init: Init = "average",
    rank: float = 0,
    component_ranks: Mapping[str, float] | None = None,
    lora_init: LoRAInit = "svd",
    own_vectors: bool = False,
    dtype: DType = "source",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a checkpoint into a recursive checkpoint, reading it layer by layer.

    The block starts from the mean of the layers that share it (`average`), from evenly spaced layers (`stepwise`), from
    the first ones (`lower`) or from noise (`random`). With a rank, each depth's LoRA starts from the truncated SVD of
    what sharing lost, or with B at zero. Norms and biases are shared as in the paper, so full rank is exactly the
    source where they are equal, or where each depth keeps its own.

    Args:
        source: a checkpoint folder, or the name of one on the Hugging Face hub.
        out: the folder to write; replaced where it holds a checkpoint made by this function.
        loops: times the block is run; divides the number of layers. 1 shares nothing.
        rank: LoRA rank of every linear at every depth, capped at its smaller side; below 1, a share of that.
        component_ranks: ranks that differ, of `attention` (queries and output), `kv` and `ffn`.
        own_vectors: give each depth norms and biases of its own.
        dtype: how the weights are stored.
        trust_remote_code: run configuration code that the source brings, where its model type is not transformers' own.

    Raises:
        BadInputError: the source, an option or `out` is wrong.
        RRTEdgeError: the disk is full.
    """
    options = ConvertOptions(
        loops=loops,
        init=init,
        rank=rank,
        component_ranks=component_ranks or {},
        lora_init=lora_init,
        own_vectors=own_vectors,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    return _convert(source, Path(out), options, progress)


def _convert(source: Path | str, out: Path, options: ConvertOptions, progress: Progress | None) -> ConvertReport:
    started = time.perf_counter()
    check_conversion(source, out, options)
    checkpoint = Checkpoint(source, options.trust_remote_code)
    family_of(checkpoint.config)
    config = RecursiveConfig(
        text_config=checkpoint.config,
        source=str(source) if not Path(source).is_dir() else Path(source).resolve().name,
        loops=options.loops,
        rank=options.rank,
        component_ranks=options.component_ranks,
        init=options.init,
        lora_init=options.lora_init,
        own_vectors=options.own_vectors,
    )
    stored = checkpoint.dtype if options.dtype == "source" else getattr(torch, options.dtype)
    with torch.device("meta"):
        model = RecursiveForCausalLM(config)
    with new_folder(out, "recursive checkpoint", is_recursive_checkpoint) as folder:
        energies = Energies()
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if config.tie_word_embeddings:
            shapes.pop("lm_head.weight", None)
        with TensorFile(folder / SINGLE, shapes, stored) as file:
            for name, tensor in recursive_state(checkpoint, model, stored, progress, energies):
                file.write(name, tensor)
        checkpoint.copy_companions(folder)
        _generation_config(checkpoint).save_pretrained(folder)
        config.architectures, config.dtype = [type(model).__name__], stored
        write_card(folder, config)
        config.save_pretrained(folder)  # last: without it nothing loads the folder
    return ConvertReport(
        out=str(out),
        loops=options.loops,
        layers_per_block=config.layers_per_block,
        rank=options.rank,
        component_ranks=dict(config.component_ranks),
        init=options.init,
        lora_init=options.lora_init,
        own_vectors=options.own_vectors,
        kept=energies.table(),
        parameters=count_parameters(model),
        seconds=round(time.perf_counter() - started, 3),
        peak_memory_bytes=peak_memory_bytes(),
    )


def recursive_state(
    checkpoint: Checkpoint,
    model: RecursiveForCausalLM,
    dtype: torch.dtype,
    progress: Progress | None = None,
    energies: Energies | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the recursive model's tensors by name, computed in float32 from a source checkpoint."""
    config, family = model.config, family_of(model.config.text_config)
    embedding = f"{family.prefix}.{family.embedding}.weight"
    yield "model.embed_tokens.weight", checkpoint.tensor(embedding, model.model.embed_tokens.weight.shape, dtype)
    for name, parameter in model.model.norm.named_parameters():
        final = f"{family.prefix}.{family.final_norm}.{name}"
        yield f"model.norm.{name}", checkpoint.tensor(final, parameter.shape, dtype)
    if not config.tie_word_embeddings:
        head = next((f"{name}.weight" for name in family.heads if f"{name}.weight" in checkpoint), "lm_head.weight")
        yield "lm_head.weight", checkpoint.tensor(head, model.lm_head.weight.shape, dtype)
    if model.exit_gate is not None:
        gate = ExitGate(config.text_config.hidden_size, config.loops - 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            gate.reset()
        yield from ((f"exit_gate.{name}", tensor.detach().to(dtype)) for name, tensor in gate.named_parameters())

    _refuse_leftovers(checkpoint, config.text_config, family)
    reader = _LayerReader(checkpoint, config, family)
    for k, layer in enumerate(model.model.block):
        for linear in family.linears:
            module = layer.get_submodule(linear.path)
            assert isinstance(module, DepthLoRALinear)
            for name, tensor in _linear_state(reader, k, linear.path, module, dtype, energies):
                yield f"model.block.{k}.{linear.path}.{name}", tensor
        for path in family.norms.values():
            for name, tensor in _norm_state(reader, k, path, layer.get_submodule(path)):
                yield f"model.block.{k}.{path}.{name}", tensor.to(dtype)
        checkpoint.close()
        if progress is not None:
            progress(k + 1, config.layers_per_block, "layers")


def _refuse_leftovers(checkpoint: Checkpoint, text: PreTrainedConfig, family: Family) -> None:
    """Raise `BadInputError` where the source's first layer has weights that the config knows nothing of."""
    prefix = f"{family.prefix}.layers.0."
    with torch.device("meta"):
        known = {name for name, _ in family.decoder_layer(text, 0).named_parameters()}
    for name in checkpoint.names(prefix):
        own = name.removeprefix(prefix)
        if own not in known and not own.endswith(("inv_freq", "attention.bias", "masked_bias")):  # old buffers
            raise BadInputError(
                f"{checkpoint.folder}: the weights hold {name!r}, for which config.json has no place; is this the "
                "model config.json says?"
            )


@dataclass(frozen=True)
class _LayerReader:
    """Reads what a layer of the block is made from."""

    checkpoint: Checkpoint
    config: RecursiveConfig
    family: Family

    def tied(self, k: int, parameter: str, shape: torch.Size) -> Iterator[Tensor]:
        """The tensors of the source's layers that share block layer `k`, loop by loop."""
        for loop in range(self.config.loops):
            yield self.one(loop * self.config.layers_per_block + k, parameter, shape)

    def one(self, layer: int, parameter: str, shape: torch.Size) -> Tensor:
        return self.checkpoint.tensor(f"{self.family.prefix}.layers.{layer}.{parameter}", shape)

    def shared(self, k: int, parameter: str, shape: torch.Size) -> Tensor:
        """Return the weight that the block starts from (section 2.2)."""
        chosen = shared_source(self.config, k)
        if chosen is not None:
            return self.one(chosen, parameter, shape)
        total = torch.zeros(shape)
        for tensor in self.tied(k, parameter, shape):
            total += tensor
        return total.div_(self.config.loops)


def _linear_state(
    reader: _LayerReader, k: int, path: str, module: DepthLoRALinear, dtype: torch.dtype, energies: Energies | None
) -> Iterator[tuple[str, Tensor]]:
    """Weight, bias and adapters of one linear of the block."""
    config, shape = reader.config, module.weight.shape
    if config.init == "random":
        seed = torch.Generator().manual_seed(zlib.crc32(f"{k}.{path}".encode()))
        shared = torch.randn(shape, generator=seed) * config.text_config.initializer_range
    else:
        shared = reader.shared(k, f"{path}.weight", shape)
    stored = shared.to(dtype)
    yield "weight", stored
    if module.bias is not None:
        width = module.bias.shape[-1:]
        own = module.bias.dim() == 2
        bias = (
            torch.stack(list(reader.tied(k, f"{path}.bias", width))) if own else reader.shared(k, f"{path}.bias", width)
        )
        yield "bias", bias.to(dtype)
    if not any(module.ranks.values()):
        return
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {part: [] for part in module.sizes}
    for loop, weight in enumerate(reader.tied(k, f"{path}.weight", shape)):
        weight -= stored  # in float32: what sharing loses, rounding included
        for part, residual in split_rows(weight, module.sizes, module.groups).items():
            if not module.ranks[part]:
                continue
            zero = config.lora_init == "zero"
            a, b, kept, lost = residual_factors(torch.zeros_like(residual) if zero else residual, module.ranks[part])
            factors[part].append((a.to(dtype), b.to(dtype)))
            if energies is not None and not zero:
                energies.add(part, loop * config.layers_per_block + k, kept, lost)
    for part, pairs in factors.items():
        for name, tensors in zip(module.adapter_names(part), zip(*pairs, strict=True), strict=False):
            yield name, torch.stack(tensors)


def _norm_state(reader: _LayerReader, k: int, path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, DepthNorms):
        for name, parameter in module.named_parameters():
            yield name, reader.shared(k, f"{path}.{name}", parameter.shape)
        return
    for name, parameter in module[0].named_parameters():
        for loop, tensor in enumerate(reader.tied(k, f"{path}.{name}", parameter.shape)):
            yield f"{loop}.{name}", tensor


def shared_source(config: RecursiveConfig, k: int) -> int | None:
    """The source layer that block layer `k` starts from, or None for the mean of the layers it replaces."""
    if config.init in ("average", "random"):  # `random` is of the linears: norms and biases are averaged
        return None
    if config.init == "lower":
        return k
    layers = config.text_config.num_hidden_layers
    # Section 2.2: evenly spaced, first and last kept; np.round rounds halves to even.
    return int(np.round(np.linspace(0, layers - 1, config.layers_per_block))[k])


def residual_factors(residual: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """A [rank, in] and B [out, rank] whose product is the best rank-r approximation of `residual` [out, in].

    `U, S, Vt = svd(residual)`, B = U_r S_r, A = Vt_r (section 2.3). Where the residual is zero, A is Gaussian and B is
    zero, so that both can train. Returns also the energy (sum of squares) that the product keeps, and the residual's.
    """
    energy = float(residual.square().sum())
    if not energy:
        generator = torch.Generator().manual_seed(0)
        gaussian = torch.randn(rank, residual.shape[1], generator=generator) / residual.shape[1] ** 0.5
        return gaussian, torch.zeros(residual.shape[0], rank), 0.0, 0.0
    wide = residual if residual.shape[0] <= residual.shape[1] else residual.T
    # The singular vectors of the smaller side are the eigenvectors of R R^T: 3 to 6 times as fast as the SVD. They are
    # orthonormal whatever the singular values, so that projecting on them loses nothing that squaring might.
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1)  # [small, rank], the largest first
    projected = vectors.T @ wide
    s = projected.norm(dim=1)
    others = projected / s.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    u, vt = (vectors, others) if wide is residual else (others.T, vectors.T)
    return vt.contiguous(), u * s, float(s.square().sum()), energy


def count_parameters(model: RecursiveForCausalLM) -> Parameters:
    """Count from shapes alone; works on the meta device. The exit gate is left out: it is not the paper's."""
    config = model.config.text_config
    embedding = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    inner = [(name, p.numel()) for name, p in model.model.named_parameters() if "embed_tokens" not in name]
    non_embedding = sum(count for _, count in inner)
    with torch.device("meta"):
        source_layer = family_of(config).decoder_layer(config, 0)
    one_layer = sum(p.numel() for p in source_layer.parameters())
    final_norm = sum(p.numel() for p in model.model.norm.parameters())
    source = one_layer * config.num_hidden_layers + final_norm
    return Parameters(embedding + non_embedding, non_embedding, source)


def _generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    if (checkpoint.folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(checkpoint.folder)
    return GenerationConfig.from_model_config(checkpoint.config)
