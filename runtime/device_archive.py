"""The bundle's archive of graphs for devices, read and checked before anything of it is used."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.manifest import DEVICE_GRAPHS, Architecture, KVRule

PRECISIONS = ("float16", "float32")
FORMS = ("block", "step", "head", "join", "grow")
ROWS = "rows"  # the one graph that runs on the CPU
LARGEST = 64 << 20  # bytes of one graph


@dataclass(frozen=True)
class DeviceArchive:
    """The graphs by name (`rows`, `float16/block`, ..), and what is to be known of them.

    `slots`: sequences the step serves; `turns`: rotary patterns; `attention_softcap`: where attention has one;
    `overflows_float16`: hidden states are known to leave its range.
    """

    graphs: dict[str, bytes]
    slots: int
    turns: int
    attention_softcap: float | None
    overflows_float16: bool


def read_archive(bundle: Path) -> DeviceArchive:
    """
    Raises:
        BundleError: the archive is damaged.
    """
    path = bundle / DEVICE_GRAPHS
    names = [ROWS, *(f"{precision}/{form}" for precision in PRECISIONS for form in FORMS)]
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if any(size > LARGEST for size in sizes.values()):
                raise BundleError(f"{path}: holds a graph of more than {LARGEST} bytes; export the bundle again")
            graphs = {name: archive.read(f"{name}.onnx") for name in names}
            about = json.loads(archive.read("about.json"))
        softcap = about["attention_softcap"]
        return DeviceArchive(
            graphs,
            slots=int(about["slots"]),
            turns=int(about["turns"]),
            attention_softcap=None if softcap is None else float(softcap),
            overflows_float16=bool(about["overflows_float16"]),
        )
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from error


def why_cpu_only(bundle: Path, architecture: Architecture, rule: KVRule) -> str | None:
    """Why a bundle runs on the CPU only; None where devices can run it."""
    if rule != "exact":
        return f"it was trained for the KV rule {rule}, which devices do not follow"
    if any(len(set(pattern)) > 1 for pattern in zip(*(architecture.windows or ()), strict=True)):
        return "the windows its attention slides over differ from depth to depth"
    if not (bundle / DEVICE_GRAPHS).is_file():
        return f"it holds no {DEVICE_GRAPHS}; export it again"
    return None
