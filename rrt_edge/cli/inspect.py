"""`inspect`: what a bundle holds, and what its graph is made of; of a source, what it is and what it would become."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rrt_edge.cli.common import guarded, json_option, print_json
from rrt_edge.cli.help import command
from rrt_edge.cli.inspect_source import inspect_source
from rrt_edge.cli.sources import BundleOrSource, Source
from rrt_edge.cli.terminal import size, two_columns
from rrt_edge.exporters.options import BLOCK_SIZE, BLOCK_SIZES
from rrt_edge.runtime.errors import BadInputError, BundleError, in_words

if TYPE_CHECKING:
    import onnx

    from rrt_edge.runtime import Manifest
    from rrt_edge.runtime.bundle.architecture import Windows
    from rrt_edge.runtime.bundle.manifest import Gate

GRAPH = "model.onnx"


@dataclass(frozen=True)
class Value:
    """An input or output of the graph; a dimension is a number, or a name where each call has its own."""

    name: str
    type: str
    shape: list[int | str]


@dataclass(frozen=True)
class Subgraph:
    """The graph itself (`path` is empty) or one inside an operator, by those it is in, the outermost first.

    Graphs of the same path are counted together: `count` says how many they are, `operators` what they hold in all.
    """

    path: list[str]
    count: int
    operators: dict[str, int]


@dataclass(frozen=True)
class GraphContents:
    """What model.onnx is made of; `opsets` are the versions of the operators, by domain."""

    opsets: dict[str, int]
    inputs: list[Value]
    outputs: list[Value]
    subgraphs: list[Subgraph]


@command(epilog="Example: rrt-edge inspect bundle")
@click.argument("source", type=BundleOrSource())
@click.option("--graph", is_flag=True, help="Show the inputs, outputs and operators of a bundle's model.onnx instead.")
@click.option("--loops", type=int, help="Show how large bundles of a checkpoint with so many loops are.  [default: 1]")
@click.option("--rank", type=int, help="The same with adapters of this rank.  [default: 0]")
@click.option(
    "--block-size",
    type=click.Choice([*map(str, BLOCK_SIZES)]),
    help=f"The same with blocks of so many weights.  [default: {BLOCK_SIZE}]",
)
@json_option
@guarded
def inspect(
    source: Path | Source, graph: bool, loops: int | None, rank: int | None, block_size: str | None, as_json: bool
) -> None:
    """Show what is inside a bundle, or what a checkpoint is.

    SOURCE is a bundle, a checkpoint's folder (recursive or not), a GGUF file, or a name on the Hugging Face hub. Of a
    checkpoint only headers are read: what it is, whether and by which loops it can be converted, and how large a bundle
    of it is at each bits.
    """
    from rrt_edge.runtime.bundle.manifest import Manifest
    from rrt_edge.runtime.decoding.default_sampling import default_sampling
    from rrt_edge.runtime.running.kv_choice import bytes_per_token

    if isinstance(source, Source):
        if graph:
            raise BadInputError(f"{source.text}: is no bundle, whose graph --graph shows; export it first")
        return inspect_source(source.local(), loops, rank, None if block_size is None else int(block_size), as_json)
    bundle = source
    if loops is not None or rank is not None or block_size is not None:
        raise BadInputError(f"{bundle}: is a bundle; --loops, --rank and --block-size are of what is not exported yet")
    manifest = Manifest.read(bundle)
    if graph:
        manifest.check_hashes(bundle, but=manifest.files.keys() - {GRAPH})
        contents = read_graph(bundle / GRAPH)
        return print_json(contents) if as_json else Console().print(graph_tables(contents))
    sampling = default_sampling(bundle)
    if as_json:
        sizes = {"kv_bytes_per_token": bytes_per_token(manifest.architecture)}
        return print_json({**asdict(manifest), **sizes, **({"sampling": sampling} if sampling else {})})
    return Console().print(manifest_table(str(bundle), manifest, sampling), *curve_tables(manifest.gate))


def _attention(windows: Windows) -> str:
    """Return how many layers slide over how many tokens."""
    layers = [window for row in windows for window in row]
    sizes = sorted({window for window in layers if window})
    return ", ".join(f"{layers.count(size)} of {len(layers)} layers see the last {size} tokens" for size in sizes)


def _layers_text(eight_bit: Mapping[str, Sequence[int]]) -> str:
    return "; ".join(f"{kind} of {', '.join(map(str, layers))}" for kind, layers in eight_bit.items())


def _either(numbers: Sequence[int]) -> str:
    """The numbers as a sentence has them: 128, 64 or 32."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _merged_text(manifest: Manifest) -> str:
    here, shared = sum(manifest.weight_bytes.values()), manifest.shared_weight_bytes or 0
    return f"merged into weights of each depth: {size(here)} instead of {size(shared)}"


def _fields_text(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def manifest_table(bundle: str, manifest: Manifest, sampling: Mapping[str, Any]) -> Table:
    """Return a table of what a bundle holds; `sampling` has the fields of `Sampling` that its makers chose."""
    from rrt_edge.runtime.running.kv_choice import bytes_per_token

    shape, gate, bits = manifest.architecture, manifest.gate, manifest.quantization
    parts = ", ".join(f"{part} {count}" for part, count in bits.parts.items())
    blocks = (bits.block_size, *(bits.smaller_blocks or ()))
    kinds = {kind.replace("_", " "): count for kind, count in bytes_per_token(shape).items()}
    points = {name: f"{threshold:g}" for name, threshold in gate.points.items()}
    rows = [
        ("family", shape.family),
        ("loops x layers per block", f"{shape.loops} x {shape.layers_per_block}"),
        ("LoRA rank", str(shape.rank)),
        ("hidden size", str(shape.hidden_size)),
        ("heads: query, key/value", f"{shape.attention_heads}, {shape.key_value_heads} of {shape.head_dim}"),
        ("vocabulary, context", f"{shape.vocabulary}, {shape.context_length} tokens"),
        *((("attention", _attention(shape.windows)),) if shape.windows else ()),
        ("cache", f"{shape.kv_bytes_per_token:,} bytes a token ({shape.kv_bits} bits), rule {manifest.kv_rule}"),
        ("cache, bytes a token", ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())),
        *((("may be left after loop", ", ".join(map(str, shape.exits))),) if shape.looped is not None else ()),
        (
            "exit gate",
            "none" if gate.kind == "none" else f"{gate.kind}, {'trained' if gate.trained else 'not trained'}",
        ),
        ("calibrated threshold", "none" if gate.threshold is None else f"{gate.threshold}"),
        *((("operating points", _fields_text(points)),) if points else ()),
        *((("sampling by default", _fields_text(sampling)),) if sampling else ()),
        ("bits", f"{bits.bits} ({parts}; blocks of {_either(blocks)})"),
        *((("8 bits in the block", _layers_text(bits.eight_bit)),) if bits.eight_bit else ()),
        *((f"weights: {part}", size(count)) for part, count in manifest.weight_bytes.items()),
        ("weights of the unshared model", size(manifest.unshared_weight_bytes)),
        *((("adapters", _merged_text(manifest)),) if manifest.merged else ()),
        *((f"provenance: {key}", str(value)) for key, value in manifest.provenance.items()),
        *(("example", question) for question in manifest.examples),
        *((name, f"{size(file.bytes)}, sha256 {file.sha256[:12]}...") for name, file in manifest.files.items()),
    ]
    if manifest.verification is not None:
        rows.append(("verified under loosened tolerance", str(manifest.verification.get("loosened"))))
    return two_columns(bundle, rows)


def curve_tables(gate: Gate) -> Iterator[Table]:
    """What calibration found, in a table: how deep tokens go at each threshold, and how many are full depth's."""
    if gate.curve:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in ("threshold", "as full depth", "mean depth"):
            table.add_column(column, justify="right")
        table.add_column("")
        for point in gate.curve:
            names = ", ".join(name for name, threshold in gate.points.items() if threshold == point.threshold)
            row = f"{point.threshold:.8f}", f"{point.agreement:.2%}", f"{point.mean_depth:.2f}"
            table.add_row(*row, Text(names))
        yield table


def read_graph(path: Path) -> GraphContents:
    """The structure of a graph; its weights, in a file of their own, are not read.

    Raises:
        BundleError: it is not a graph.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # of protobuf, which reads the file
        raise BundleError(f"{path}: cannot be read as a graph ({in_words(error)})") from error
    counts: dict[tuple[str, ...], int] = {}
    operators: dict[tuple[str, ...], Counter[str]] = {}
    for place, graph in _graphs(model.graph, ()):
        counts[place] = counts.get(place, 0) + 1
        operators.setdefault(place, Counter()).update(".".join(filter(None, (n.domain, n.op_type))) for n in graph.node)
    return GraphContents(
        {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        [_value(value) for value in model.graph.input],
        [_value(value) for value in model.graph.output],
        [Subgraph(list(place), counts[place], dict(operators[place].most_common())) for place in counts],
    )


def _graphs(graph: onnx.GraphProto, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], onnx.GraphProto]]:
    """A graph and those inside its operators, each with its path."""
    yield path, graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):  # the body of a Loop, the branches of an If
                part = attribute.name.removesuffix("_branch")
                yield from _graphs(attribute.g, (*path, f"{node.op_type} {part}: {attribute.g.name}"))


def _value(value: onnx.ValueInfoProto) -> Value:
    import onnx

    tensor = value.type.tensor_type
    shape = [dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim]
    return Value(value.name, onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape)


def graph_tables(contents: GraphContents) -> Group:
    """Inputs and outputs, a row for those whose names differ by numbers alone, and the operators of each subgraph."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in contents.opsets.items())
    tables = [_values_table("input", contents.inputs), _values_table("output", contents.outputs)]
    subgraphs = Table(box=SIMPLE_HEAD, pad_edge=False)
    subgraphs.add_column("subgraph", overflow="fold", min_width=28)
    subgraphs.add_column("times", justify="right")
    subgraphs.add_column("operators", overflow="fold")
    for part in contents.subgraphs:
        name = "  " * len(part.path) + (part.path[-1] if part.path else "main graph")
        counts = ((operator.rpartition(".")[2], count) for operator, count in part.operators.items())
        listed = ", ".join(f"{operator}\N{MULTIPLICATION SIGN}{count}" for operator, count in counts)
        subgraphs.add_row(Text(name), f"{part.count}", Text(listed))
    return Group(Text(f"{GRAPH}: operators of {opsets}"), *tables, subgraphs)


def _values_table(kind: str, values: list[Value]) -> Table:
    alike: dict[tuple[str, str], list[Value]] = {}
    for value in values:
        alike.setdefault((re.sub(r"(\.\d+)+$", "", value.name), value.type), []).append(value)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in (kind, "type", "shape"):
        table.add_column(column, overflow="fold")
    for (_, type_name), group in alike.items():
        first, last = group[0], group[-1]
        shape = ", ".join(_span(*sizes) for sizes in zip(first.shape, last.shape, strict=True))
        table.add_row(Text(_span(first.name, last.name)), type_name, Text(f"[{shape}]"))
    return table


def _span(first: Any, last: Any) -> str:
    """What the first and the last of a row are called."""
    return str(first) if first == last else f"{first} .. {last}"
