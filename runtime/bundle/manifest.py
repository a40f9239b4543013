"""`manifest.json`: what a bundle holds. Everything in it is checked and bounded before anything is allocated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.cost import Cost
from rrt_edge.runtime.bundle.exit_curve import CurvePoint, read_curve
from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES, KVRuleName
from rrt_edge.runtime.bundle.kv_rules import KV_RULES, KVRule
from rrt_edge.runtime.bundle.looping import GATE_KINDS
from rrt_edge.runtime.bundle.manifest_reader import Fields, read_json
from rrt_edge.runtime.bundle.quantization import Quantization
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.system.files import PATIENCE, new_file, recover, sha256, writing
from rrt_edge.runtime.system.options import shown
from rrt_edge.runtime.system.progress import Progress, counted

FILE = "manifest.json"
DEVICE_GRAPHS = "device_graphs.zip"  # what GPUs run in the place of model.onnx, over the same weights
FORMAT = "rrt-edge bundle"
VERSION = 2  # the one that is written
VERSIONS = (1, 2)  # those that are read
DIGEST = "sha256"  # the field with the hash of all others, since version 2
FIRST_FIELDS = {  # of version 1
    "format", "format_version", "architecture", "gate", "quantization", "kv_rule", "eos_token_ids", "weight_bytes",
    "unshared_weight_bytes", "provenance", "files", "verification",
}  # fmt: skip
MOST_FILES = 100
MOST_EXAMPLES = 20
LONGEST_EXAMPLE = 1000  # characters
LARGEST_MANIFEST = 4 << 20  # bytes
LONGEST_NAME = 255  # bytes of a file's
GATES = (*GATE_KINDS, "linear")  # kinds of exit gates; `linear` is of older bundles


@dataclass(frozen=True)
class Gate:
    """The exit gate: `kind` is `mlp`, `hazard`, `linear` or `none`; `threshold` is the calibrated one, if there is one.

    `points`: thresholds of named operating points, and `curve`: what some thresholds gave (`rrt-edge calibrate`).
    """

    kind: str
    trained: bool
    threshold: float | None
    points: dict[str, float] = dataclasses.field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()

    @classmethod
    def read(cls, fields: Fields, loops: int) -> Gate:
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
        return cls(kind, trained, threshold, dict(points), read_curve(fields, loops))


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True, repr=False)
class Manifest:
    """The contents of manifest.json.

    `verification` records a check passed under loosened tolerances, `cost` what export measured where it had texts.
    `examples` are questions to begin with.
    `shared_weight_bytes`: what the weights would take with one block for all depths, where adapters are merged into
    weights for each.
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
    examples: tuple[str, ...] = ()
    shared_weight_bytes: int | None = None

    def __repr__(self) -> str:
        shape = self.architecture
        return (
            f"Manifest({shape.family}, loops={shape.loops}, vocabulary={shape.vocabulary}, "
            f"context_length={shape.context_length}, bits={self.quantization.bits}, kv_rule={self.kv_rule!r})"
        )

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
            gate=Gate.read(fields.table("gate"), architecture.loops),
            quantization=Quantization.read(fields.table("quantization")),
            kv_rule=kv_rule,
            eos_token_ids=_eos_token_ids(fields),
            weight_bytes=fields.counts("weight_bytes", 1 << 50),
            unshared_weight_bytes=fields.count("unshared_weight_bytes", 0, 1 << 50),
            provenance=dict(fields.table("provenance").values),
            files=_files(fields.table("files")),
            verification=verification,
            cost=None if fields.get("cost") is None else Cost.read(fields.table("cost"), architecture.loops),
            examples=_examples(fields),
            shared_weight_bytes=None
            if fields.get("shared_weight_bytes") is None
            else fields.count("shared_weight_bytes", 0, 1 << 50),
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
    def merged(self) -> bool:
        """Whether each depth has weights of its own, its adapters merged into them."""
        return self.shared_weight_bytes is not None

    @property
    def rule(self) -> KVRule:
        """The KV rule that the checkpoint was trained for."""
        return KV_RULES[self.kv_rule]

    @property
    def total_bytes(self) -> int:
        """Bytes of the bundle's files, as they are listed."""
        return sum(file.bytes for file in self.files.values())

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

    def check_hashes(self, bundle: Path, but: Collection[str] = (), progress: Progress | None = None) -> None:
        """Raise `BundleError` where a file's SHA-256 is not the one recorded; reads every byte of them but `but`."""
        self.check_sizes(bundle)
        for name, file in counted([*self.files.items()], progress, "files hashed"):
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


def _eos_token_ids(fields: Fields) -> tuple[int, ...]:
    ids = fields.get("eos_token_ids")
    if not isinstance(ids, list) or not all(type(value) is int and value >= 0 for value in ids):
        raise fields.fail("eos_token_ids", "must be a list of token ids")
    return tuple(ids)


def is_example(value: Any) -> bool:
    """Whether a value may be one of a bundle's examples."""
    return isinstance(value, str) and len(value.strip()) > 0 and len(value) <= LONGEST_EXAMPLE


def _examples(fields: Fields) -> tuple[str, ...]:
    examples = fields.get("examples", [])
    if not isinstance(examples, list) or len(examples) > MOST_EXAMPLES or not all(map(is_example, examples)):
        raise fields.fail("examples", f"must be up to {MOST_EXAMPLES} texts of 1 to {LONGEST_EXAMPLE} characters")
    return tuple(examples)


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
