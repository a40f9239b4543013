"""What `export`, `verify` and bundles of random weights refuse beside wrong options, said before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rrt_edge.conversion.checks import check_sharing_of
from rrt_edge.conversion.folder import RECURSIVE, check_source
from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.conversion.options import ConvertOptions
from rrt_edge.exporters.options import SOURCE, ExportOptions
from rrt_edge.model.sharing import LOOPS, check_sharing, own_loops
from rrt_edge.runtime.bundle.manifest import FILE
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import check_kind
from rrt_edge.runtime.system.files import check_replaceable

CARRIED = ("Q4_0", "Q8_0")  # GGML's types whose blocks are onnxruntime's, whatever they hold
SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama": {  # TinyLlama-1.1B
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    },
    "smollm": {  # SmolLM-135M, with the context of SmolLM2-135M
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def is_bundle(folder: Path) -> bool:
    return (folder / FILE).is_file()


def check_export(source: Path | str, bundle: Path, options: ExportOptions) -> ExportOptions:
    """The options for the source, none of them open.

    Raises:
        BadInputError: the source or the place for the bundle is wrong, or the options do not go with the source.
    """
    check_replaceable(bundle, "bundle", is_bundle)
    return check_source_options(source, check_source(source), options)


def check_source_options(source: Path | str, fields: dict[str, Any], options: ExportOptions) -> ExportOptions:
    """The options for the source, none of them open.

    Raises:
        BadInputError: the options do not go with the source, or the fields of its config.
    """
    options, recursive = options.resolved(fields), fields["model_type"] == RECURSIVE
    if options.bits == SOURCE and not Path(source).is_file():
        raise BadInputError(
            f"{source}: bits source keeps the blocks of a GGUF file, which this is not; give other bits"
        )
    if options.data is not None:
        check_kind(options.data)
    if options.repair_rank and recursive and (fields.get("rank") or fields.get("component_ranks")):
        raise BadInputError(f"{source}: has adapters, which data fits anew; repair-rank is for a model without")
    if options.max_size is not None and (own_loops(fields) or fields.get("norm_inside")):
        raise BadInputError(f"{source}: max-size does not go with looped models of others; give bits")
    if options.merge_adapters:
        _check_merged(source, fields, options, recursive)
    if not recursive:
        shares = own_loops(fields) is None and options.loops != 1
        if options.data is not None and (shares or options.rank):
            raise BadInputError(
                f"{source}: data goes with loops 1 or a recursive checkpoint; make that first: rrt-edge convert --data"
            )
        check_sharing_of(source, fields, converting(options))
    return options


def _check_merged(source: Path | str, fields: dict[str, Any], options: ExportOptions, recursive: bool) -> None:
    ranks = [fields.get("rank"), *(fields.get("component_ranks") or {}).values()] if recursive else [options.rank]
    if (fields.get("loops", LOOPS) if recursive else options.loops) == 1 or not any(ranks):
        raise BadInputError(f"{source}: has no adapters of several depths to merge; leave out merge-adapters")
    if own_loops(fields) or fields.get("norm_inside"):
        raise BadInputError(f"{source}: merge-adapters does not go with looped models of others; leave it out")
    if fields.get("kv_rule") == "propagate":
        raise BadInputError(f"{source}: merge-adapters does not go with the KV rule propagate; leave it out")


def converting(options: ExportOptions) -> ConvertOptions:
    """How a source that is not recursive becomes it."""
    return ConvertOptions(loops=options.loops, init=options.init, rank=options.rank)


def keeps_blocks(header: GgufHeader) -> bool:
    """Whether the layers' matrices are all in blocks that a bundle carries over as they are."""
    matrices = [tensor for name, tensor in header.tensors.items() if name.startswith("blk.") and len(tensor.shape) > 1]
    return bool(matrices) and all(tensor.type in CARRIED for tensor in matrices)


def check_verification(source: Path | str, text: Path | str | None) -> None:
    """
    Raises:
        BadInputError: there is no such source or text.
    """
    check_source(source)
    if text is not None and not Path(text).is_file():
        raise BadInputError(f"{text}: no such text file")


def check_shape(shape: str, loops: int, rank: int, merge_adapters: bool = False) -> None:
    """
    Raises:
        BadInputError: there is no such shape, loops or rank cannot be, or there are no adapters to merge.
    """
    if shape not in SHAPES:
        raise BadInputError(f"shape {shape!r}: choose from {', '.join(SHAPES)}")
    check_sharing(SHAPES[shape]["num_hidden_layers"], loops, rank)
    if merge_adapters and (loops == 1 or not rank):
        raise BadInputError("merge-adapters: there are none of several depths; give loops above 1 and a rank")
