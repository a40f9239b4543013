"""`inspect`: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from rrt_edge.cli.common import BundlePath, guarded, json_option, print_json
from rrt_edge.cli.terminal import size, two_columns

if TYPE_CHECKING:
    from rrt_edge.runtime import Manifest
    from rrt_edge.runtime.bundle.manifest import Windows


@click.command(epilog="Example: rrt-edge inspect bundle")
@click.argument("bundle", type=BundlePath())
@json_option
@guarded
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what is inside a bundle."""
    from rrt_edge.runtime.bundle.manifest import Manifest

    manifest = Manifest.read(bundle)
    if as_json:
        return print_json(manifest)
    return Console().print(manifest_table(str(bundle), manifest))


def _attention(windows: Windows) -> str:
    """How many layers slide over how many tokens."""
    layers = [window for row in windows for window in row]
    sizes = sorted({window for window in layers if window})
    return ", ".join(f"{layers.count(size)} of {len(layers)} layers see the last {size} tokens" for size in sizes)


def manifest_table(bundle: str, manifest: Manifest) -> Table:
    """What a bundle holds."""
    shape, gate, bits = manifest.architecture, manifest.gate, manifest.quantization
    parts = ", ".join(f"{part} {count}" for part, count in bits.parts.items())
    rows = [
        ("family", shape.family),
        ("loops x layers per block", f"{shape.loops} x {shape.layers_per_block}"),
        ("LoRA rank", str(shape.rank)),
        ("hidden size", str(shape.hidden_size)),
        ("heads: query, key/value", f"{shape.attention_heads}, {shape.key_value_heads} of {shape.head_dim}"),
        ("vocabulary, context", f"{shape.vocabulary}, {shape.context_length} tokens"),
        *((("attention", _attention(shape.windows)),) if shape.windows else ()),
        ("cache", f"{shape.kv_bytes_per_token:,} bytes a token ({shape.kv_bits} bits), rule {manifest.kv_rule}"),
        ("exit gate", f"{gate.kind}, {'trained' if gate.trained else 'not trained'}"),
        ("calibrated threshold", "none" if gate.threshold is None else f"{gate.threshold}"),
        ("bits", f"{bits.bits} ({parts}; blocks of {bits.block_size})"),
        *((f"weights: {part}", size(count)) for part, count in manifest.weight_bytes.items()),
        ("weights of the unshared model", size(manifest.unshared_weight_bytes)),
        *((f"provenance: {key}", str(value)) for key, value in manifest.provenance.items()),
        *((name, f"{size(file.bytes)}, sha256 {file.sha256[:12]}...") for name, file in manifest.files.items()),
    ]
    if manifest.verification is not None:
        rows.append(("verified under loosened tolerance", str(manifest.verification["loosened"])))
    return two_columns(bundle, rows)
