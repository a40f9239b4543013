"""Weights in the layout this machine's kernels want, kept on disk.

onnxruntime packs the weights anew at each load and keeps them on its heap. Saved once, they are mapped instead: pages
of a file, which the system may drop and which several processes share. The price is disk, about twice the bundle.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
from pathlib import Path

from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.system.files import new_folder, sha256, writing
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.onnxruntime import CPU, first_line, onnxruntime, session_options

GRAPH, DATA, LIST = "model.onnx", "model.onnx.data", "weight_cache.json"
GRAPH_FILES = (GRAPH, DATA)
PATIENCE = 600.0  # seconds to wait for another process that packs the same weights
LEAST_EXTERNAL = "1024"  # bytes of a tensor that goes into the data file


def packed_graph(bundle: Path, manifest: Manifest, cache: Path) -> Path:
    """The folder in `cache` whose model.onnx stands for the bundle's on this machine; made where it is not there yet.

    Raises:
        BundleError: the bundle is damaged.
        BadInputError: `cache` cannot be written.
        RRTEdgeError: the disk is full, or onnxruntime failed.
    """
    folder = cache / _key(manifest)
    if not _is_whole(folder):
        manifest.check_hashes(bundle)
        with writing(folder, PATIENCE):
            if not _is_whole(folder):  # or another process made it meanwhile
                with new_folder(folder, "weight cache", _is_ours) as made:
                    _pack(bundle, made)
    return folder


def _key(manifest: Manifest) -> str:
    """A name for these weights on this processor under this onnxruntime."""
    parts = [manifest.files[name].sha256 for name in GRAPH_FILES]
    digest = hashlib.sha256("\n".join([*parts, onnxruntime.__version__, platform.machine(), _processor()]).encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """Return the processor's instruction sets as far as the system tells: the layout depends on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _is_ours(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {GRAPH, DATA, LIST}


def _is_whole(folder: Path) -> bool:
    try:
        hashes = parse_json((folder / LIST).read_text("utf-8"))
        return all(sha256(folder / name) == hashes[name] for name in GRAPH_FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _pack(bundle: Path, folder: Path) -> None:
    options = session_options()
    options.optimized_model_filepath = str(folder / GRAPH)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", LEAST_EXTERNAL),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(str(bundle / GRAPH), options, providers=[CPU])
    except Exception as error:  # onnxruntime raises several unrelated types
        problem = f"onnxruntime could not write the packed weights ({first_line(error)})"
        raise RRTEdgeError(f"{folder.parent}: {problem}") from error
    gc.collect()  # the session maps the bundle, which Windows would not let others replace meanwhile
    hashes = {name: sha256(folder / name) for name in GRAPH_FILES}
    (folder / LIST).write_text(json.dumps(hashes), "utf-8")
