"""The archive of graphs for devices is the one that docs/graph.md tells of."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import onnx

from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS, Manifest
from tests.exporters.test_graph import DOCS


def told() -> dict[str, set[str]]:
    """By graph, the names of its inputs and outputs; of slot s, layer l, pattern t."""
    section = DOCS.read_text(encoding="utf-8").partition("## Graphs for devices")[2]
    names: dict[str, set[str]] = {}
    table = ""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("file", "`rows`", "`block`, `step`", "others"):
            table = {"`rows`": "rows", "`block`, `step`": "block"}.get(cells[0], cells[0])
        elif line.startswith(("| `", "| out:")):
            if table == "others":
                names[cells[0].strip("`")] = set(re.findall(r"`([a-z_.0-9]+)`", f"{cells[1]} {cells[2]}"))
            else:
                names.setdefault(table, set()).update(re.findall(r"`([a-z_./0-9]+)`", cells[0]))
    return names


def names_of(model: onnx.ModelProto) -> set[str]:
    """Slots, layers and patterns as the docs write them."""
    found = set()
    for value in [*model.graph.input, *model.graph.output]:
        plane = re.fullmatch(r"((past|present)_(key|value))\.\d+\.\d+", value.name)
        slot = re.fullmatch(r"(hidden|rows|last_row|length)\.\d+", value.name)
        turn = re.fullmatch(r"turn\.\d+", value.name)
        found.add(f"{plane[1]}.s.l" if plane else f"{slot[1]}.s" if slot else "turn.t" if turn else value.name)
    return found


def test_the_archive_is_the_one_the_docs_tell_of(bundle: Path) -> None:
    docs, shape = told(), Manifest.read(bundle).architecture
    with zipfile.ZipFile(bundle / DEVICE_GRAPHS) as archive:
        models = {name: onnx.load_from_string(archive.read(name)) for name in archive.namelist() if "onnx" in name}
        assert {name.rpartition("/")[2].replace(".0.", ".") for name in archive.namelist()} == {
            "about.json", "rows.onnx", "block.onnx", "step.onnx", "head.onnx", "join.onnx", "grow.onnx", "attend.onnx",
        }  # fmt: skip
    assert names_of(models["rows.onnx"]) == docs["rows"] - {"long_context"}
    for kind in ("float16", "float32"):
        block, step = (names_of(models[f"{kind}/{form}.onnx"]) for form in ("block", "step"))
        assert step == docs["block"] and block == step - {"slot_rows"}
        for form, one in (("head", "head"), ("join", "join"), ("grow", "grow"), ("attend.w", "attend.0")):
            graph = models[f"{kind}/{one}.onnx"].graph
            assert {value.name for value in [*graph.input, *graph.output]} == docs[form]
        inputs = {value.name for value in models[f"{kind}/step.onnx"].graph.input}
        assert {name for name in inputs if name.startswith("past_key")} == {
            f"past_key.{slot}.{layer}" for slot in range(1, 5) for layer in range(shape.layers_per_block)
        }


def test_every_weight_is_in_the_bundles_one_file(bundle: Path) -> None:
    """The graphs bring no weight of their own but small constants."""
    with zipfile.ZipFile(bundle / DEVICE_GRAPHS) as archive:
        for name in archive.namelist():
            if name.endswith(".onnx"):
                for tensor in onnx.load_from_string(archive.read(name)).graph.initializer:
                    places = {entry.key: entry.value for entry in tensor.external_data}
                    assert places.get("location", "model.onnx.data") == "model.onnx.data"
                    assert places or tensor.ByteSize() < 4096
