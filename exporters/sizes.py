"""How large a bundle would be: its graphs are emitted over tensors that have shapes and no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from tokenizers import Tokenizer

from rrt_edge.conversion.block import refuse_leftovers
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.conversion import recursive_config
from rrt_edge.conversion.converted import Converted
from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.conversion.options import ConvertOptions
from rrt_edge.exporters.bundle import plan_bits
from rrt_edge.exporters.dry_run import SMALL_FILES, Shapes, emitted_bytes
from rrt_edge.exporters.options import SOURCE, ExportBits, ExportOptions
from rrt_edge.exporters.source_blocks import SourceBlocks
from rrt_edge.exporters.spec import spec_of
from rrt_edge.model.families import family_of
from rrt_edge.model.projections import Read
from rrt_edge.model.sharing import check_sharing
from rrt_edge.quantisation.blocks import BLOCK, Quantized
from rrt_edge.quantisation.packing import is_packed
from rrt_edge.quantisation.wide import Matrix

BITS: tuple[ExportBits, ...] = tuple(bits for kind in get_args(ExportBits) for bits in get_args(kind) or (kind,))
BYTES_OF_TOKEN, BYTES_OF_MERGE = 18, 17  # that tokenizer.json takes for each
MERGES_OF_PIECE = 1.95  # that a vocabulary of SentencePiece's BPE has for each of its pieces


class BlockShapes(SourceBlocks):
    """The matrices of a GGUF file as a bundle would keep them, without their numbers."""

    def __init__(self, weights: Converted, header: GgufHeader, shapes: Shapes) -> None:
        super().__init__(weights, header)
        self._shapes = shapes

    def matrix(self, name: str) -> Matrix:
        zeros, bits = self._shapes.tensor(name), self.bits_of(name)
        if not is_packed(bits):
            return zeros.numpy()
        rows, columns = zeros.shape
        packed = torch.zeros((), dtype=torch.uint8).expand(rows, columns // BLOCK, BLOCK * bits // 8)
        scales = torch.zeros(()).expand(rows, columns // BLOCK)
        return Quantized(packed.numpy(), scales.numpy(), bits, columns)


def sizes_of(source: Path, loops: int = 1, rank: int = 0, block_size: int = BLOCK) -> dict[str, int]:
    """`bundle_sizes` of a folder or a GGUF file."""
    return bundle_sizes(Checkpoint(source), loops, rank, block_size)


def bundle_sizes(checkpoint: Checkpoint, loops: int = 1, rank: int = 0, block_size: int = BLOCK) -> dict[str, int]:
    """Bytes of the bundle that `export` would write, by what `bits` it is given; no weights are read.

    Args:
        loops, rank: of a source that is not recursive.
        block_size: of 4 and 8 bits.

    Raises:
        BadInputError: the checkpoint cannot be exported, or not with these loops.
    """
    config = checkpoint.config
    if not checkpoint.is_recursive:
        check_sharing(config.num_hidden_layers if family_of(config).looping is None else None, loops, rank)
        refuse_leftovers(checkpoint, family_of(config))
        config = recursive_config(config, ConvertOptions(loops=loops, rank=rank), None)
    spec, shapes = spec_of(config), Shapes(config)
    kept = checkpoint.gguf is not None and loops == 1 and not rank and block_size == BLOCK
    beside = SMALL_FILES + _tokenizer_bytes(checkpoint)
    sizes = {}
    for bits in BITS if kept else BITS[:-1]:
        blocks = _block_shapes(checkpoint, shapes) if bits == SOURCE else None
        asked = block_size if bits in (4, 8) else BLOCK
        options = ExportOptions(bits=bits, block_size=asked, loops=loops, rank=rank)
        matrix: Read | None = None
        if blocks is None:
            plan = plan_bits(options, spec.tied_head)
        else:
            plan, matrix = blocks.plan(spec.tied_head), blocks.matrix
        sizes[str(bits)] = emitted_bytes(spec, plan, shapes, matrix) + beside
    return sizes


def _block_shapes(checkpoint: Checkpoint, shapes: Shapes) -> BlockShapes:
    assert checkpoint.gguf is not None
    return BlockShapes(Converted(checkpoint, shapes.config, checkpoint.dtype), checkpoint.gguf, shapes)


def _tokenizer_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of tokenizer.json: as it is written from the folder's, else about what so many tokens take."""
    if checkpoint.gguf is not None:
        tokens, merges = (checkpoint.gguf.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges"))
        pieces = tokens if isinstance(tokens, int) else 0
        pairs = merges if isinstance(merges, int) else MERGES_OF_PIECE * pieces
        return round(pieces * BYTES_OF_TOKEN + pairs * BYTES_OF_MERGE)
    path = checkpoint.source / "tokenizer.json"
    if not path.is_file():
        return round(int(checkpoint.config.vocab_size) * (BYTES_OF_TOKEN + MERGES_OF_PIECE * BYTES_OF_MERGE))
    try:
        text: str = Tokenizer.from_file(str(path)).to_str(pretty=False)
    except Exception:  # tokenizers raises plain Exception; export says what is wrong with it
        return path.stat().st_size
    return len(text.encode())
