"""`manifest.json`: what a bundle holds. Everything in it is checked and bounded before anything is allocated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rrt_edge.runtime.bundle.cost import Cost
from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES, KVRuleName
from rrt_edge.runtime.bundle.kv_rules import EXACT, KV_RULES, KVRule
from rrt_edge.runtime.bundle.looping import GATE_KINDS, OWN_LOOPING, Looping
from rrt_edge.runtime.bundle.manifest_reader import Fields, read_json
from rrt_edge.runtime.bundle.quantization import MOST_LAYERS, Quantization
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.system.files import PATIENCE, new_file, recover, sha256, writing
from rrt_edge.runtime.system.options import shown

FILE = "manifest.json"
DEVICE_GRAPHS = "device_graphs.zip"  # what GPUs run in the place of model.onnx, over the same weights
KV_BITS = (8, 32)  # a key or value is an integer with a scale for its row and head, or float32
FORMAT = "rrt-edge bundle"
VERSION = 2  # the one that is written
VERSIONS = (1, 2)  # those that are read
DIGEST = "sha256"  # the field with the hash of all others, since version 2
FIRST_FIELDS = {
    "format",
    "format_version",
    "architecture",
    "gate",
    "quantization",
    "kv_rule",
    "eos_token_ids",
    "weight_bytes",
    "unshared_weight_bytes",
    "provenance",
    "files",
    "verification",
}  # fmt: skip  of version 1
MOST_FILES = 100
LARGEST_MANIFEST = 4 << 20  # bytes
LONGEST_NAME = 255  # bytes of a file's
GATES = (*GATE_KINDS, "linear")  # kinds of exit gates; `linear` is of older bundles
WINDOW_SPARE = 256  # rows that a cache may hold beyond a window (cache.py)
Windows = tuple[tuple[int | None, ...], ...]  # tokens a layer attends to, by loop and layer; None: all


def kv_groups(windows: Windows) -> tuple[tuple[int, ...], ...]:
    """The layers of the block whose windows are the same at every depth, together: they hold the same rows."""
    groups: dict[tuple[int | None, ...], list[int]] = {}
    for layer, pattern in enumerate(zip(*windows, strict=True)):
        groups.setdefault(pattern, []).append(layer)
    return tuple(tuple(layers) for layers in groups.values())


@dataclass(frozen=True)
class Architecture:
    """Shapes the runtime needs. `context_length` in tokens; `layers_per_block` KV slots at each of `loops` depths.

    `pasts` past inputs of each layer in the graph: the sequences one step can serve, at least `loops`. `windows`: how
    many tokens each layer attends to, by loop and layer, where any has such a limit. `short_context`: the context up to
    which the model rotates as it first learned, where it has other frequencies for longer ones (LongRoPE). `looped`:
    how the loops follow each other, where the model is a looped one of others.
    """

    family: str
    loops: int
    layers_per_block: int
    rank: int
    hidden_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    pasts: int
    kv_bits: int
    windows: Windows | None = None
    short_context: int | None = None
    looped: Looping | None = None

    @property
    def looping(self) -> Looping:
        """How the loops follow each other."""
        return self.looped or OWN_LOOPING

    @property
    def exits(self) -> tuple[int, ...]:
        """The depths whose logits may be read, in order; the last is full depth."""
        return self.looping.exits or tuple(range(1, self.loops + 1))

    @cached_property
    def kv_groups(self) -> tuple[tuple[int, ...], ...]:
        """The layers of the block that hold the same rows at every depth."""
        return kv_groups(self.windows or ((None,) * self.layers_per_block,) * self.loops)

    def window(self, depth: int, group: int) -> int | None:
        """Return how many tokens the layers of a KV group attend to at a depth, or None for all."""
        return self.windows[depth - 1][self.kv_groups[group][0]] if self.windows else None

    @property
    def kv_planes(self) -> dict[str, tuple[type[np.generic], int]]:
        """Planes of the cache by their name in the graph: the element type and the numbers of a row and head."""
        if self.kv_bits == 32:
            return {"key": (np.float32, self.head_dim), "value": (np.float32, self.head_dim)}
        whole, scale = (np.int8, self.head_dim), (np.float32, 1)
        return {"key": whole, "value": whole, "key_scale": scale, "value_scale": scale}

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one position at every depth."""
        return self.kv_bytes(1)

    def kv_bytes(self, tokens: int, rule: KVRule = EXACT) -> int:
        """Keys and values of so many tokens in every slot, as far as windows let them be kept."""
        row_bytes = sum(np.dtype(kind).itemsize * count for kind, count in self.kv_planes.values())
        rows = tokens * rule.slots(self.loops) * self.layers_per_block
        if self.windows is not None:
            bounds = [tokens if window is None else window + WINDOW_SPARE for row in self.windows for window in row]
            rows = sum(min(tokens, bound) for bound in bounds)
        return rows * self.key_value_heads * row_bytes

    @classmethod
    def read(cls, fields: Fields) -> Architecture:
        """
        Raises:
            BundleError: a field is missing, out of bounds, or does not go with another.
        """
        loops = fields.count("loops", 1, 64)
        read = cls(
            family=fields.text("family"),
            loops=loops,
            layers_per_block=fields.count("layers_per_block", 1, MOST_LAYERS),
            rank=fields.count("rank", 0, 1 << 16),
            hidden_size=fields.count("hidden_size", 1, 1 << 17),
            attention_heads=fields.count("attention_heads", 1, 1 << 12),
            key_value_heads=fields.count("key_value_heads", 1, 1 << 12),
            head_dim=fields.count("head_dim", 1, 1 << 12),
            vocabulary=fields.count("vocabulary", 1, 1 << 22),
            context_length=fields.count("context_length", 1, 1 << 24),
            pasts=fields.count("pasts", 1, 1 << 10),
            kv_bits=fields.count("kv_bits", 8, 32),
            windows=_windows(fields),
            short_context=None if fields.get("short_context") is None else fields.count("short_context", 1, 1 << 24),
            looped=None if fields.get("looped") is None else _looping(fields.table("looped"), loops),
        )
        sizes = [len(row) for row in read.windows or ()]
        if read.windows is not None and sizes != [read.layers_per_block] * read.loops:
            raise fields.fail("windows", f"must be {read.loops} lists of {read.layers_per_block} entries, or null")
        if read.kv_bits not in KV_BITS:
            raise fields.fail("kv_bits", f"{read.kv_bits} is not known; known: {', '.join(map(str, KV_BITS))}")
        if read.pasts < read.loops:
            raise fields.fail("pasts", f"{read.pasts} is less than the {read.loops} loops")
        if read.attention_heads % read.key_value_heads:
            raise fields.fail("key_value_heads", f"{read.key_value_heads} does not divide the attention heads")
        return read


@dataclass(frozen=True)
class Gate:
    """The exit gate: `kind` is `mlp`, `hazard`, `linear` or `none`; `threshold` is the calibrated one, if there is one.

    `points`: thresholds of named operating points (`rrt-edge calibrate`).
    """

    kind: str
    trained: bool
    threshold: float | None
    points: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, fields: Fields) -> Gate:
        """
        Raises:
            BundleError: a field is missing or out of bounds.
        """
        kind, trained, threshold = fields.text("kind"), fields.get("trained"), fields.get("threshold")
        if kind not in GATES:
            raise fields.fail("gate.kind", f"{shown(kind)} is not known; known: {', '.join(GATES)}")
        if not isinstance(trained, bool):
            raise fields.fail("gate.trained", "must be true or false")
        if threshold is not None and not _is_share(threshold):
            raise fields.fail("gate.threshold", f"{shown(threshold)} must be between 0 and 1, or null")
        points = fields.get("points", {})
        if not isinstance(points, dict) or not all(map(_is_share, points.values())):
            raise fields.fail("gate.points", "must be names and thresholds between 0 and 1")
        return cls(kind, trained, threshold, dict(points))


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    `verification` records a check passed under loosened tolerances, `cost` what export measured where it had texts.
    """

    architecture: Architecture
    gate: Gate
    quantization: Quantization
    kv_rule: KVRuleName
    eos_token_ids: tuple[int, ...]
    weight_bytes: dict[str, int]
    unshared_weight_bytes: int
    provenance: dict[str, Any]
    files: dict[str, File]
    verification: dict[str, Any] | None = None
    cost: Cost | None = None

    @classmethod
    def read(cls, bundle: Path) -> Manifest:
        """Read and check the manifest of a bundle folder.

        Raises:
            BundleError: the folder or its manifest is missing, damaged or of another version; names file and field.
        """
        path = bundle / FILE
        recover(bundle)
        if not bundle.is_dir():
            raise BundleError(f"{bundle}: no such bundle folder; make one with rrt-edge export")
        if not path.is_file():
            raise BundleError(f"{bundle}: holds no {FILE}, so it is not a bundle; make one with rrt-edge export")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise BundleError(f"{path}: larger than {LARGEST_MANIFEST} bytes; this is no manifest")
        return cls._read(path, read_json(path))

    @classmethod
    def _read(cls, path: Path, values: Any) -> Manifest:
        fields = Fields(path, values if isinstance(values, dict) else {})
        if fields.get("format") != FORMAT:
            raise fields.fail("format", f"is not {FORMAT!r}; this is not a bundle's manifest")
        version = fields.get("format_version")
        if type(version) is not int or version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise fields.fail(
                "format_version", f"{shown(version)} is none of the versions this rrt-edge reads, {known}"
            )
        newer = sorted(fields.values.keys() - FIRST_FIELDS) if version == 1 else []
        if newer:
            raise fields.fail(
                "format_version", f"1 does not go with the field {shown(newer[0])}; export the bundle again"
            )
        kv_rule = fields.text("kv_rule")
        if kv_rule not in KV_RULE_NAMES:
            known = ", ".join(KV_RULE_NAMES)
            raise fields.fail("kv_rule", f"{shown(kv_rule)} is not known to this version; known: {known}")
        verification = fields.get("verification")
        if verification is not None and not isinstance(verification, dict):
            raise fields.fail("verification", "must be an object or null")
        architecture = Architecture.read(fields.table("architecture"))
        manifest = cls(
            architecture=architecture,
            gate=Gate.read(fields.table("gate")),
            quantization=Quantization.read(fields.table("quantization")),
            kv_rule=kv_rule,
            eos_token_ids=_eos_token_ids(fields),
            weight_bytes=fields.counts("weight_bytes", 1 << 50),
            unshared_weight_bytes=fields.count("unshared_weight_bytes", 0, 1 << 50),
            provenance=dict(fields.table("provenance").values),
            files=_files(fields.table("files")),
            verification=verification,
            cost=None if fields.get("cost") is None else Cost.read(fields.table("cost"), architecture.loops),
        )
        beyond = [token for token in manifest.eos_token_ids if token >= manifest.architecture.vocabulary]
        if (manifest.gate.kind == "hazard") != (architecture.looping.gate == "hazard"):
            raise fields.fail("gate.kind", f"{shown(manifest.gate.kind)} is not that of architecture.looped")
        if beyond:
            raise fields.fail("eos_token_ids", f"{beyond[0]} is none of the {manifest.architecture.vocabulary} tokens")
        if version > 1 and fields.get(DIGEST) != digest(fields.values):
            raise fields.fail(DIGEST, "is not that of the other fields; the file was changed or damaged")
        return manifest

    @property
    def rule(self) -> KVRule:
        """The KV rule that the checkpoint was trained for."""
        return KV_RULES[self.kv_rule]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of what a conversation depends on: graph, weights and tokenizer."""
        names = ("model.onnx", "model.onnx.data", "tokenizer.json")
        hashes = [self.files[name].sha256 for name in names if name in self.files]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def write(self, bundle: Path) -> None:
        """Write manifest.json into a bundle folder.

        Raises:
            BadInputError: it cannot be written.
            RRTEdgeError: the disk is full.
        """
        fields = {"format": FORMAT, "format_version": VERSION, **dataclasses.asdict(self)}
        fields[DIGEST] = digest(json.loads(json.dumps(fields)))
        with new_file(bundle / FILE) as partial:
            partial.write_text(json.dumps(fields, indent=2) + "\n", "utf-8", newline="\n")

    def update(self, bundle: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
        """Change the manifest of a bundle that this one was read from, and that others may change at the same time.

        Args:
            change: gets the manifest as it is by now; nobody else writes the bundle meanwhile.

        Raises:
            BundleError: the bundle is another by now.
            BadInputError: it cannot be written.
            RRTEdgeError: another process writes the bundle, or the disk is full.
        """
        with writing(bundle, PATIENCE):
            now = Manifest.read(bundle)
            if now.files != self.files:
                raise BundleError(f"{bundle}: was replaced meanwhile; nothing was written, run this again")
            changed = change(now)
            changed.write(bundle)
        return changed

    def check_sizes(self, bundle: Path) -> None:
        """Raise `BundleError` where a file is missing or has another size than recorded."""
        for name, file in self.files.items():
            path = bundle / name
            if not path.is_file():
                raise BundleError(f"{path}: missing from the bundle; export or copy it again")
            if path.stat().st_size != file.bytes:
                size = path.stat().st_size
                raise BundleError(f"{path}: {size} bytes, the manifest says {file.bytes}; export or copy it again")

    def check_hashes(self, bundle: Path, but: Collection[str] = ()) -> None:
        """Raise `BundleError` where a file's SHA-256 is not the one recorded; reads every byte of them but `but`."""
        self.check_sizes(bundle)
        for name, file in self.files.items():
            if name not in but and sha256(bundle / name) != file.sha256:
                raise BundleError(
                    f"{bundle / name}: its SHA-256 is not the manifest's; the file was changed or damaged"
                )


def digest(fields: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of a manifest's fields but the one that holds it, in an order and spelling of their own."""
    rest = {name: value for name, value in fields.items() if name != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def list_files(bundle: Path) -> dict[str, File]:
    """Size and SHA-256 of every file of a bundle but the manifest."""
    names = sorted(path.name for path in bundle.iterdir() if path.is_file() and path.name != FILE)
    return {name: File((bundle / name).stat().st_size, sha256(bundle / name)) for name in names}


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _windows(fields: Fields) -> Windows | None:
    value = fields.get("windows")
    if value is None:
        return None
    rows: list[Any] = value if isinstance(value, list) else [None]
    entries = [entry for row in rows for entry in (row if isinstance(row, list) else [0])]
    if not all(entry is None or (type(entry) is int and entry > 0) for entry in entries):
        raise fields.fail("windows", "must be a list for each loop of a window or null for each layer, or null")
    return tuple(tuple(row) for row in rows)


def _looping(fields: Fields, loops: int) -> Looping:
    gate, exits = fields.text("gate"), fields.get("exits")
    if gate not in GATE_KINDS:
        raise fields.fail("gate", f"{shown(gate)} is not known; known: {', '.join(GATE_KINDS)}")
    whole = isinstance(exits, list) and all(type(depth) is int and depth > 0 for depth in exits)
    if exits is not None and not (whole and exits == sorted(set(exits)) and exits[-1:] == [loops]):
        raise fields.fail("exits", f"must be ascending depths that end with {loops}, or null")
    depths = None if exits is None else tuple(exits)
    return Looping(fields.flag("norm_inside"), gate, depths, fields.count("draft_depth", 1, loops))


def _eos_token_ids(fields: Fields) -> tuple[int, ...]:
    ids = fields.get("eos_token_ids")
    if not isinstance(ids, list) or not all(type(value) is int and value >= 0 for value in ids):
        raise fields.fail("eos_token_ids", "must be a list of token ids")
    return tuple(ids)


def _files(fields: Fields) -> dict[str, File]:
    files = {}
    if len(fields.values) > MOST_FILES:
        raise fields.fail("files", f"lists {len(fields.values):,} files; {MOST_FILES} are the most of a bundle")
    for name in fields:
        parts = PurePosixPath(name).parts
        if len(parts) != 1 or parts[0] in ("..", ".") or "\\" in name or ":" in name:
            raise fields.fail(f"files[{shown(name)}]", "leaves the bundle's folder")
        if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            raise fields.fail(f"files[{shown(name)}]", "is no name of a file")
        if not isinstance(fields.get(name), dict):
            raise fields.fail(f"files[{shown(name)}]", "must be an object of bytes and sha256")
    for needed in ("model.onnx", "model.onnx.data", "tokenizer.json"):
        if needed not in fields.values:
            raise fields.fail("files", f"does not list {needed}")
    for name in fields:
        entry = fields.table(name)
        files[name] = File(entry.count("bytes", 0, 1 << 50), entry.text("sha256"))
    return files
