"""How a checkpoint was rounded while it was trained: export takes that where it is asked for nothing else."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from rrt_edge.exporters.options import ExportOptions
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.quantisation.blocks import BLOCK
from rrt_edge.quantisation.plan import bits_by_part

log = logging.getLogger(__name__)


def trained_for(config: RecursiveConfig) -> dict[str, str]:
    """What a checkpoint's weights were rounded to while it was trained, for the manifest."""
    if config.trained_bits is None:
        return {}
    said = f"{config.trained_bits} bits in blocks of {config.trained_block_size}"
    if config.trained_eight_bit is not None:
        said += f", {' and '.join(config.trained_eight_bit) or 'nothing'} at 8"
    return {"trained_for": said}


def as_trained(source: Path, config: RecursiveConfig, options: ExportOptions) -> ExportOptions:
    """The options, where they leave it open with how a checkpoint was rounded in training; says what differs."""
    bits, parts = config.trained_bits, config.trained_eight_bit
    if bits is None:
        return options
    if options.block_size is None and options.bits in (4, 8):
        options = dataclasses.replace(options, block_size=config.trained_block_size)
    same_bits = options.bits == bits
    if same_bits and parts is not None and options.eight_bit is None and options.max_size is None:
        options = dataclasses.replace(options, eight_bit=tuple(parts))
    differing = []
    if not same_bits:
        differing.append(f"bits {options.bits}")
    elif options.block_size != config.trained_block_size:
        differing.append(f"block-size {options.block_size}")
    if options.eight_bit is not None:
        tied = config.tie_word_embeddings
        if bits_by_part(bits, options.eight_bit, tied, BLOCK) != bits_by_part(bits, parts, tied, BLOCK):
            differing.append("eight-bit")
    differing += [name for name in ("data", "max-size") if getattr(options, name.replace("-", "_")) is not None]
    if differing:
        said, otherwise = trained_for(config)["trained_for"], ", ".join(differing)
        log.warning("%s: was trained for %s; this is rounded otherwise (%s)", source, said, otherwise)
    return options
