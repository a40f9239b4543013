"""Export a checkpoint as a bundle: quantised loop graph, tokenizer, manifest."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from rrt_edge.conversion.block import refuse_leftovers
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.conversion import read_texts, recursive_config, write_generation_config
from rrt_edge.conversion.converted import Converted
from rrt_edge.conversion.options import Init
from rrt_edge.exporters.as_trained import as_trained, trained_for
from rrt_edge.exporters.block import LayerWeights
from rrt_edge.exporters.budget import Budget, Spent
from rrt_edge.exporters.checkpoint_weights import (
    ReadRows,
    RecursiveTensors,
    Streamed,
    layer_weights,
    outer_weights,
)
from rrt_edge.exporters.checks import check_export, converting, is_bundle
from rrt_edge.exporters.cost import Reference, cost, set_apart
from rrt_edge.exporters.data_rounding import RoundedToTexts
from rrt_edge.exporters.dry_run import shared_weight_bytes
from rrt_edge.exporters.ends import reply_ends
from rrt_edge.exporters.examples import examples_of
from rrt_edge.exporters.loop_graph import emit
from rrt_edge.exporters.merged_graph import check_mergeable
from rrt_edge.exporters.options import SOURCE, ExportBits, ExportOptions
from rrt_edge.exporters.repair import Repaired
from rrt_edge.exporters.source_blocks import SourceBlocks
from rrt_edge.exporters.spec import BlockSpec, spec_of
from rrt_edge.exporters.tokenizer_files import write_tokenizer
from rrt_edge.exporters.units import by_name
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import family_of
from rrt_edge.model.projections import Read
from rrt_edge.quantisation.blocks import BLOCK, fitting_block
from rrt_edge.quantisation.plan import PARTS, Bits, Part, bits_by_part, packs_embedding
from rrt_edge.runtime.bundle.cost import Cost
from rrt_edge.runtime.bundle.declared import KEY, declaration
from rrt_edge.runtime.bundle.manifest import Gate, Manifest, list_files
from rrt_edge.runtime.bundle.quantization import Quantization
from rrt_edge.runtime.check import load_checked
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.system.files import new_folder
from rrt_edge.runtime.system.memory import peak_memory_bytes
from rrt_edge.runtime.system.progress import Progress
from rrt_edge.runtime.system.version import __version__

log = logging.getLogger(__name__)
Float = NDArray[np.float32]


@dataclass(frozen=True)
class ExportReport:
    """`unshared_bytes` is what the bundle would take without sharing, at the same bits; the tables are by part.

    `cost` is what the bits cost, where there was `data` of several texts: on every ninth of them, which is set apart.
    `spent` is where `max_size` put 8 bits. `shared_bytes` is what it would take with one block for all depths, where
    adapters are merged.
    """

    bundle: str
    bytes: int
    unshared_bytes: int
    bits: int
    weight_bytes: dict[str, int]
    unshared_weight_bytes: dict[str, int]
    seconds: float
    peak_memory_bytes: int
    cost: Cost | None = None
    spent: tuple[Spent, ...] = ()
    shared_bytes: int | None = None


def export(
    source: Path | str,
    bundle: Path | str,
    *,
    bits: ExportBits | None = None,
    eight_bit: Sequence[Part] | None = None,
    block_size: int | None = None,
    loops: int | None = None,
    init: Init = "average",
    rank: int = 0,
    data: Path | str | None = None,
    data_tokens: int = 16384,
    repair_rank: int = 0,
    max_size: int | None = None,
    kv_bits: int = 32,
    merge_adapters: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a checkpoint as a bundle; a checkpoint that is not recursive is converted first.

    Args:
        source: a recursive checkpoint, or any checkpoint or GGUF file that `convert` takes.
        bundle: the folder to write; replaced where it holds a bundle.
        bits: 4 or 8 (block-wise integers), 16 (stored in float16, computed in float32) or 32; or `source`: the blocks
            of a GGUF file as they are, with `loops=1`; what onnxruntime's blocks cannot say exactly becomes 8 bits. By
            default 4, or 8 for a looped model of others, in which errors of rounding come back in every loop.
        eight_bit: parts kept at 8 bits where `bits` is 4: block, lora, embedding, head. By default embedding and head
            where they are one matrix, whose error counts twice (on the demo this halves the KL for a tenth more bytes);
            `()` has all at 4 bits. Of one matrix the name of either part says both.
        block_size: 32, 64 or 128 weights of 4 or 8 bits share a scale; a matrix whose rows are not at least four whole
            blocks takes the largest size below of which they are, or 32. By default what the checkpoint was trained
            with (`TrainOptions.bits`), or 32.
        loops, init, rank: how a source that is not recursive is converted, as in `convert`; `loops=1` exports it
            unshared.
        data: a few dozen texts or chats (`rrt_edge.model.text.read_examples`), with `bits` 4 or 8: the block's matrices
            are rounded so that the layers' output on them loses least (`rrt_edge.quantisation.compensated`).
        data_tokens: of the data, how many tokens are read, at most 512 of a text; every ninth text is set apart, to
            measure on it what the bits cost.
        repair_rank: with `data`, for a model without adapters: the rank of some at each depth that take up what
            rounding lost (`rrt_edge.exporters.repair`); adapters that a model has are fitted anew.
        max_size: bytes that the whole bundle may take, with `bits` 4 and `data`: from all at 4 bits on, matrices get 8
            in the order of the divergence that this saves for its bytes (`rrt_edge.exporters.divergence`).
        kv_bits: how the runtime keeps keys and values: 32 (float) or 8 (integers, about a quarter of the memory).
        merge_adapters: each depth gets weights of its own, with its adapters in them: a small model, whose tokens take
            as long as the calls of kernels, is faster, with more bytes and memory. No loop makes drafts then.

    Raises:
        BadInputError: the source, an option or the place for the bundle is wrong.
        RRTEdgeError: the disk is full.
    """
    parts = None if eight_bit is None else tuple(eight_bit)
    options = ExportOptions(
        bits=bits,
        eight_bit=parts,
        block_size=block_size,
        loops=loops,
        init=init,
        rank=rank,
        data=None if data is None else Path(data),
        data_tokens=data_tokens,
        repair_rank=repair_rank,
        max_size=max_size,
        kv_bits=kv_bits,
        merge_adapters=merge_adapters,
    )
    return _export(source, Path(bundle), options, progress)


def _export(source: Path | str, bundle: Path, options: ExportOptions, progress: Progress | None) -> ExportReport:
    started = time.perf_counter()
    options = check_export(source, bundle, options)
    checkpoint = Checkpoint(source)
    weights: RecursiveTensors = checkpoint
    if not checkpoint.is_recursive:
        refuse_leftovers(checkpoint, family_of(checkpoint.config))
        config = recursive_config(checkpoint.config, converting(options), None)
        weights = Converted(checkpoint, config, checkpoint.dtype)
    return _export_recursive(weights, checkpoint, bundle, options, progress, started)


def plan_bits(options: ExportOptions, tied_head: bool) -> Bits:
    """The bits of each part."""
    assert options.bits is not None and options.bits != SOURCE
    eight_bit = () if options.max_size is not None else options.eight_bit
    return bits_by_part(options.bits, eight_bit, tied_head, options.block_size or BLOCK)


def _export_recursive(
    weights: RecursiveTensors,
    checkpoint: Checkpoint,
    bundle: Path,
    options: ExportOptions,
    progress: Progress | None,
    started: float,
) -> ExportReport:
    """Export `weights`; `checkpoint` is where they are from, and has the tokenizer."""
    options = as_trained(checkpoint.folder, weights.config, options)
    dtype, blocks = checkpoint.dtype, _source_blocks(weights, checkpoint, options)
    facts = spec_of(weights.config)
    plan = None if blocks is not None else plan_bits(options, facts.tied_head)
    outside: ReadRows = lambda name: Streamed(weights.tensor(name, dtype=dtype))  # noqa: E731
    inside: Read = lambda name: weights.tensor(name).numpy()  # noqa: E731
    if blocks is not None:
        outside = inside = blocks.matrix
    reference, spent = None, list[Spent]()
    texts, windows = set_apart(read_texts(checkpoint, options.data, options.data_tokens))
    with new_folder(bundle, "bundle", is_bundle) as folder:
        write_tokenizer(checkpoint.folder, folder)
        eos = reply_ends(checkpoint.folder, folder, facts.eos_token_ids, facts.vocabulary)
        if options.max_size is not None and plan is not None:
            budget = Budget(weights, plan, folder, options)
            plan, spent = budget.spend(texts, dtype, progress)
        if texts and plan is not None:
            reference = Reference(weights, windows, dtype) if windows else None
            weights, inside = _rounded(weights, texts, plan, dtype, options.repair_rank, progress)
        spec = dataclasses.replace(spec_of(weights.config), kv_bits=options.kv_bits)
        if options.merge_adapters:
            check_mergeable(checkpoint.folder, spec.architecture)
        outer = outer_weights(weights, spec, outside)
        if blocks is not None:
            plan = blocks.plan(spec.tied_head)
        assert plan is not None
        layers = watched(layer_weights(weights, spec, inside), spec.layers, progress)
        weight_bytes = emit(spec, plan, outer, layers, folder, options.merge_adapters)
        del inside, layers  # they hold much, and what follows needs memory too
        plan = plan if blocks is None else blocks.written(plan)
        bits = min(plan.block, plan.embedding, plan.head) if blocks is not None else options.bits
        assert isinstance(bits, int)
        unshared = _unshared_weight_bytes(spec, plan, weight_bytes)
        write_generation_config(checkpoint, folder)
        provenance = {"init": weights.config.init, **trained_for(weights.config)}
        shared = shared_weight_bytes(weights.config, spec, plan) if options.merge_adapters else None
        write_manifest(
            weights.config, spec, bits, plan, weight_bytes, folder, eos_token_ids=eos, provenance=provenance,
            examples=examples_of(checkpoint.folder), shared_weight_bytes=shared,
        )  # fmt: skip
        measured = _check_runs(folder, reference, windows)
        total = sum(path.stat().st_size for path in folder.iterdir())
        assert options.max_size is None or total <= options.max_size
    return ExportReport(
        bundle=str(bundle),
        bytes=total,
        unshared_bytes=total + sum(unshared.values()) - sum(weight_bytes.values()),
        bits=bits,
        weight_bytes=weight_bytes,
        unshared_weight_bytes=unshared,
        seconds=round(time.perf_counter() - started, 3),
        peak_memory_bytes=peak_memory_bytes(),
        cost=measured,
        spent=tuple(spent),
        shared_bytes=None if shared is None else total + shared - sum(weight_bytes.values()),
    )


def _rounded(
    weights: RecursiveTensors,
    texts: list[list[int]],
    plan: Bits,
    dtype: torch.dtype,
    repair_rank: int,
    progress: Progress | None,
) -> tuple[RecursiveTensors, Read]:
    """The model rounded to some texts, its adapters fitted to what that lost, and what reads its block's matrices."""
    rounded = RoundedToTexts(weights, texts, plan, dtype)
    if not (repair_rank or weights.config.relaxed):
        return weights, rounded.matrix
    repaired = Repaired(weights, rounded.matrix, texts, plan, dtype, repair_rank, progress)
    return repaired, repaired.matrix


def _check_runs(folder: Path, reference: Reference | None, windows: list[list[int]]) -> Cost | None:
    """Load the new bundle and run a token, before it takes the place of another, and measure what its bits cost.

    Raises:
        RRTEdgeError: it does not run.
    """
    manifest = Manifest.read(folder)
    report, runner = load_checked(folder, manifest)
    if runner is None:
        raise RRTEdgeError(f"the new bundle does not run, and was not written: {report.problem}")
    try:
        measured = None if reference is None else cost(reference, windows, runner)
    finally:
        runner.close()
    if measured is not None:
        dataclasses.replace(manifest, cost=measured).write(folder)
    return measured


def _source_blocks(weights: RecursiveTensors, checkpoint: Checkpoint, options: ExportOptions) -> SourceBlocks | None:
    """What reads the matrices as a GGUF file has them, where that is asked for."""
    if options.bits != SOURCE:
        return None
    assert isinstance(weights, Converted) and checkpoint.gguf is not None
    return SourceBlocks(weights, checkpoint.gguf)


def watched(layers: Iterator[LayerWeights], count: int, progress: Progress | None) -> Iterator[LayerWeights]:
    """The layers, reporting progress as they are written."""
    for done, layer in enumerate(layers):
        yield layer
        if progress is not None:
            progress(done + 1, count, "layers exported")


def write_manifest(
    config: RecursiveConfig,
    spec: BlockSpec,
    bits: int,
    plan: Bits,
    weight_bytes: dict[str, int],
    folder: Path,
    *,
    eos_token_ids: tuple[int, ...],
    provenance: dict[str, str],
    examples: tuple[str, ...] = (),
    shared_weight_bytes: int | None = None,
) -> None:
    """Write manifest.json, the last file of a bundle: it lists the others, of which the graph repeats what it says."""
    manifest = Manifest(
        architecture=spec.architecture,
        gate=Gate(spec.looping.gate, config.gate_trained, config.exit_threshold, config.exit_points),
        quantization=_quantization(spec, bits, plan),
        kv_rule=config.kv_rule,
        eos_token_ids=eos_token_ids,
        weight_bytes=weight_bytes,
        unshared_weight_bytes=sum(_unshared_weight_bytes(spec, plan, weight_bytes).values()),
        provenance={**provenance, "rrt_edge": __version__, "onnx": onnx.__version__},
        files={},
        examples=examples,
        shared_weight_bytes=shared_weight_bytes,
    )
    _declare(folder, manifest)
    dataclasses.replace(manifest, files=list_files(folder)).write(folder)


def _quantization(spec: BlockSpec, bits: int, plan: Bits) -> Quantization:
    rows = (spec.hidden, spec.heads * spec.head_dim, spec.intermediate)
    largest, *smaller = sorted({fitting_block(columns, plan.block_size) for columns in rows}, reverse=True)
    parts: dict[str, int] = {part: getattr(plan, part) for part in PARTS}
    return Quantization(bits, largest, parts, tuple(smaller) or None, by_name(plan.eight_bit) or None)


def _declare(folder: Path, manifest: Manifest) -> None:
    """Let the graph say of itself what the manifest says: messages of protobuf that are joined are one message."""
    entry = onnx.StringStringEntryProto(key=KEY, value=declaration(manifest))
    with (folder / "model.onnx").open("ab") as file:
        file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())


def _unshared_weight_bytes(spec: BlockSpec, plan: Bits, weight_bytes: dict[str, int]) -> dict[str, int]:
    """Bytes by part of all layers' weights without sharing, at the same bits."""
    if spec.loops == 1 and not spec.rank:
        return dict(weight_bytes)  # nothing is shared

    def matrix(outputs: int, inputs: int, bits: int) -> int:
        return plan.format(bits, inputs).bytes((outputs, inputs))

    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes = {
        "qk": (q + kv, spec.hidden),
        "v": (kv, spec.hidden),
        "o": (spec.hidden, q),
        "gate_up": (spec.intermediate * (1 + spec.gated), spec.hidden),
        "down": (spec.hidden, spec.intermediate),
    }
    block = 0
    for index, (name, shape) in product(range(spec.layers), shapes.items()):
        block += matrix(*shape, plan.of_unit(f"{index}.{name}"))
    layers, packed = spec.layers * spec.loops, packs_embedding(spec.hidden, plan.embedding)
    sizes = {
        "block": (block + 4 * spec.bias_numbers * spec.layers) * spec.loops,
        "norms": (spec.norm_numbers * layers + spec.hidden * (1 + spec.layer_norm)) * 4,
        "embedding": matrix(spec.vocabulary, spec.hidden, plan.embedding if packed or plan.embedding == 16 else 32),
    }
    if not (spec.tied_head and plan.head == plan.embedding and packed):
        sizes["head"] = matrix(spec.vocabulary, spec.hidden, plan.head)
    return sizes
