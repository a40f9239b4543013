"""What a graph says of itself, which its manifest must say too: the exporter writes it into both."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import named, shown
from rrt_edge.runtime.system.protobuf import LENGTH, fields, strings

KEY = "rrt_edge"  # of the model's metadata
LARGEST = 1 << 20  # bytes of the entry
METADATA = 14  # the number of the field in ONNX's ModelProto; an entry has its key in field 1 and its value in field 2


def declaration(manifest: Manifest) -> str:
    """All that a manifest says of the graph, its weights and what they were trained for, as JSON."""
    gate = {"kind": manifest.gate.kind, "trained": manifest.gate.trained}
    facts: dict[str, Any] = {
        "architecture": dataclasses.asdict(manifest.architecture),
        "gate": gate,
        "quantization": dataclasses.asdict(manifest.quantization),
        "kv_rule": manifest.kv_rule,
        "weight_bytes": manifest.weight_bytes,
        "unshared_weight_bytes": manifest.unshared_weight_bytes,
    }
    if manifest.merged:
        facts["shared_weight_bytes"] = manifest.shared_weight_bytes
    return json.dumps(facts, sort_keys=True)


def check_declared(bundle: Path, manifest: Manifest) -> None:
    """
    Raises:
        BundleError: the manifest says something else than the graph, or than the sizes of its weights; names the field.
    """
    path = bundle / "model.onnx"
    weights, data = sum(manifest.weight_bytes.values()), manifest.files["model.onnx.data"].bytes
    if weights > data:
        raise BundleError(f"{path}: is not the graph its manifest describes (weight_bytes: {weights}, of {data})")
    stated = _metadata(path).get(KEY)
    if stated is None:  # of a version that wrote none
        return
    try:
        expected = parse_json(stated)
    except ValueError as error:
        raise BundleError(f"{path}: what it says of itself is not valid JSON; export the bundle again") from error
    wrong = _difference(expected, json.loads(declaration(manifest)), "")
    if wrong is not None:
        raise BundleError(f"{path}: is not the graph its manifest describes ({wrong})")


def check_tokenizer(bundle: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """
    Raises:
        BundleError: a token that ends replies is none of the tokenizer's.
    """
    unknown = [token for token in manifest.eos_token_ids if tokenizer.id_to_token(token) is None]
    if unknown:
        raise BundleError(f"{bundle / 'manifest.json'}: eos_token_ids {unknown[0]} is no token of tokenizer.json")


def _difference(expected: Any, declared: Any, name: str) -> str | None:
    """The first field that differs, and both values."""
    if isinstance(expected, dict) and isinstance(declared, dict):
        for key in sorted(expected.keys() | declared.keys()):
            inner = f"{name}.{key}" if name else key
            if (wrong := _difference(expected.get(key), declared.get(key), inner)) is not None:
                return wrong
        return None
    same = expected == declared and type(expected) is type(declared)
    return None if same else f"{named(name)}: it has {shown(expected)}, the manifest says {shown(declared)}"


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file, without a look at the rest of it; what can be read, where it is damaged."""
    entries: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            for number, kind, length in fields(file):
                if (number, kind) == (METADATA, LENGTH) and length <= LARGEST:
                    entry = strings(io.BytesIO(file.read(length)))
                    entries[entry.get(1, "")] = entry.get(2, "")
    except (OSError, ValueError, OverflowError):  # a length leads anywhere; onnxruntime says what is wrong with it
        pass
    return entries
