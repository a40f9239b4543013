"""The bundle's archive of graphs for devices, read and checked before anything of it is used."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rrt_edge.runtime.bundle.kv_rules import KVRule
from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS, Architecture, Windows
from rrt_edge.runtime.errors import BundleError

PRECISIONS = ("float16", "float32")
FORMS = ("block", "step", "head", "join", "grow")
ROWS = "rows"  # the one graph that runs on the CPU
VERSION = 1
LARGEST = 64 << 20  # bytes of one graph


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
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if any(size > LARGEST for size in sizes.values()):
                raise BundleError(f"{path}: holds a graph of more than {LARGEST} bytes; export the bundle again")
            about = json.loads(archive.read("about.json"))
            if about["version"] != VERSION:
                raise BundleError(f"{path}: version {about['version']} is not {VERSION}; export the bundle again")
            scale, softcap = float(about["attention_scale"]), about["attention_softcap"]
            attentions = tuple(
                Attention(scale, None if softcap is None else float(softcap), None if window is None else int(window))
                for window in about["windows"]
            )
            forms = [*FORMS, *(f"attend.{number}" for number in range(len(attentions)))]
            names = [ROWS, *(f"{precision}/{form}" for precision in PRECISIONS for form in forms)]
            return DeviceArchive(
                {name: archive.read(f"{name}.onnx") for name in names},
                slots=int(about["slots"]),
                turns=int(about["turns"]),
                attentions=attentions,
                overflows_float16=bool(about["overflows_float16"]),
            )
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from error


def why_cpu_only(bundle: Path, architecture: Architecture, rule: KVRule) -> str | None:
    """Return why a bundle runs on the CPU only, or None where devices can run it."""
    if not rule.on_devices:
        return f"it was trained for the KV rule {rule}, which devices do not follow"
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
