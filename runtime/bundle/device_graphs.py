"""The bundle's archive of graphs for devices, read and checked before anything of it is used."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from rrt_edge.runtime.bundle.architecture import Windows
from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS, Manifest
from rrt_edge.runtime.bundle.manifest_reader import Fields
from rrt_edge.runtime.errors import BundleError, one_line
from rrt_edge.runtime.system.archive_errors import DAMAGED
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import shown

PRECISIONS = ("float16", "float32")
FORMS = ("block", "step", "head", "join", "grow")
ROWS = "rows"  # the one graph that runs on the CPU
VERSION = 1
LARGEST = 64 << 20  # bytes of one graph
MOST = 256 << 20  # bytes of all together
LARGEST_ABOUT = 1 << 20  # bytes of what is to be known of them
MOST_PARTS = 1 << 10  # slots, rotary patterns or kinds of attention
LARGEST_SCALE = 1e6  # of attention, and where its scores are capped
LONGEST_WINDOW = 1 << 24  # tokens
PIECE = 1 << 20  # bytes read at a time: what an archive says of its sizes need not be so


@dataclass(frozen=True)
class Attention:
    """What attention is to compute: its scale, its soft cap and its sliding window, where it has them."""

    scale: float
    softcap: float | None
    window: int | None

    def __str__(self) -> str:
        parts = [] if self.softcap is None else [f"a soft cap of {self.softcap}"]
        parts += [] if self.window is None else [f"a window of {self.window}"]
        return f" with {' and '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class DeviceArchive:
    """The graphs by name (`rows`, `float16/block`, ..), and what is to be known of them.

    `slots`: sequences the step serves; `turns`: rotary patterns; `attentions`: the kinds there are, each with a graph
    `attend.N` of its own; `overflows_float16`: hidden states are known to leave its range.
    """

    graphs: dict[str, bytes]
    slots: int
    turns: int
    attentions: tuple[Attention, ...]
    overflows_float16: bool


def read_archive(bundle: Path) -> DeviceArchive:
    """
    Raises:
        BundleError: the archive is damaged.
    """
    path = bundle / DEVICE_GRAPHS
    try:
        with zipfile.ZipFile(path) as archive:
            values = parse_json(_member(archive, "about.json", LARGEST_ABOUT))
            about = Fields(path, values if isinstance(values, dict) else {})
            if about.get("version") != VERSION:
                raise BundleError(
                    f"{path}: version {shown(about.get('version'))} is not {VERSION}; export the bundle again"
                )
            attentions = _attentions(about)
            forms = [*FORMS, *(f"attend.{number}" for number in range(len(attentions)))]
            names = [ROWS, *(f"{precision}/{form}" for precision in PRECISIONS for form in forms)]
            graphs: dict[str, bytes] = {}
            for name in names:
                room = min(LARGEST, MOST - sum(map(len, graphs.values())))
                graphs[name] = _member(archive, f"{name}.onnx", room)
            return DeviceArchive(
                graphs,
                slots=about.count("slots", 1, MOST_PARTS),
                turns=about.count("turns", 0, MOST_PARTS),
                attentions=attentions,
                overflows_float16=about.flag("overflows_float16"),
            )
    except BundleError:
        raise
    except (OSError, KeyError, *DAMAGED) as error:
        raise BundleError(f"{path}: cannot be read ({one_line(error)}); export the bundle again") from error


def _attentions(about: Fields) -> tuple[Attention, ...]:
    """
    Raises:
        BundleError: a field is missing or out of bounds.
    """
    scale, windows = about.number("attention_scale", LARGEST_SCALE), about.get("windows")
    if "attention_softcap" not in about.values:
        raise about.fail("attention_softcap", "is missing; it is a number or null")
    softcap = None if about.get("attention_softcap") is None else about.number("attention_softcap", LARGEST_SCALE)
    if not isinstance(windows, list) or not 0 < len(windows) <= MOST_PARTS:
        raise about.fail("windows", "must be a list of windows and nulls")
    if not all(window is None or (type(window) is int and 0 < window <= LONGEST_WINDOW) for window in windows):
        raise about.fail("windows", "must be a list of windows and nulls")
    return tuple(Attention(scale, softcap, window) for window in windows)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """What a file of the archive unpacks to; ValueError where that is more than `most` bytes."""
    pieces, size = [], 0
    with archive.open(name) as file:
        while piece := file.read(PIECE):
            size += len(piece)
            if size > most:
                raise ValueError(f"{name} is larger than graphs are")
            pieces.append(piece)
    return b"".join(pieces)


def why_cpu_only(bundle: Path, manifest: Manifest) -> str | None:
    """Return why a bundle runs on the CPU only, or None where devices can run it."""
    architecture, rule = manifest.architecture, manifest.rule
    if not rule.on_devices:
        return f"it was trained for the KV rule {rule}, which devices do not follow"
    if manifest.merged:
        return "its adapters are merged into weights of each depth, and devices run the block that depths share"
    unfit = why_unfit(architecture.windows or (), architecture.head_dim)
    if unfit is None and not (bundle / DEVICE_GRAPHS).is_file():
        return f"it holds no {DEVICE_GRAPHS}; export it again"
    return unfit


def why_unfit(windows: Windows, head_dim: int) -> str | None:
    """Return what in a model's shape devices cannot run, or None where they can run it."""
    if any(len(set(pattern)) > 1 for pattern in zip(*windows, strict=True)):
        return "the windows its attention slides over differ from depth to depth"
    if head_dim % 8:
        return f"its heads have {head_dim} numbers, and devices want whole eights"
    return None
