"""Weights in the layout this machine's kernels want, kept on disk.

onnxruntime packs the weights anew at each load and keeps them on its heap. Saved once, they are mapped instead: pages
of a file, which the system may drop and which several processes share. The price is disk, about twice the bundle for
each graph.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path

from rrt_edge.runtime.bundle.block_contract import BLOCK_GRAPH
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.system.files import new_folder, sha256, writing
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.onnxruntime import CPU, first_line, onnxruntime, session_options

LIST = "weight_cache.json"
GRAPHS = ("model.onnx", BLOCK_GRAPH)
GRAPH_FILES = (*GRAPHS, "model.onnx.data")  # of a bundle
PATIENCE = 600.0  # seconds to wait for another process that packs the same weights
LEAST_EXTERNAL = "1024"  # bytes of a tensor that goes into the data file


def packed_graph(bundle: Path, manifest: Manifest, cache: Path) -> Path:
    """The folder in `cache` whose graphs stand for the bundle's on this machine; made where it is not there yet.

    Raises:
        BundleError: the bundle is damaged.
        BadInputError: `cache` cannot be written.
        RRTEdgeError: the disk is full, or onnxruntime failed.
    """
    folder, graphs = cache / _key(manifest), [name for name in GRAPHS if name in manifest.files]
    if not _is_whole(folder, graphs):
        manifest.check_hashes(bundle)
        with writing(folder, PATIENCE):
            if not _is_whole(folder, graphs):  # or another process made it meanwhile
                with new_folder(folder, "weight cache", _is_ours) as made:
                    for graph in graphs:
                        _pack(bundle, made, graph)
                    hashes = {name: sha256(made / name) for name in _files(graphs)}
                    (made / LIST).write_text(json.dumps(hashes), "utf-8")
    return folder


def _files(graphs: Sequence[str]) -> list[str]:
    """The graphs, and the files of their weights."""
    return [name for graph in graphs for name in (graph, f"{graph}.data")]


def _key(manifest: Manifest) -> str:
    """A name for these weights on this processor under this onnxruntime."""
    parts = [manifest.files[name].sha256 for name in GRAPH_FILES if name in manifest.files]
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
    return {path.name for path in folder.iterdir()} <= {*_files(GRAPHS), LIST}


def _is_whole(folder: Path, graphs: Sequence[str]) -> bool:
    try:
        hashes = parse_json((folder / LIST).read_text("utf-8"))
        return all(sha256(folder / name) == hashes[name] for name in _files(graphs))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _pack(bundle: Path, folder: Path, graph: str) -> None:
    options = session_options()
    options.optimized_model_filepath = str(folder / graph)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", f"{graph}.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", LEAST_EXTERNAL),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(str(bundle / graph), options, providers=[CPU])
    except Exception as error:  # onnxruntime raises several unrelated types
        problem = f"onnxruntime could not write the packed weights ({first_line(error)})"
        raise RRTEdgeError(f"{folder.parent}: {problem}") from error
    gc.collect()  # the session maps the bundle, which Windows would not let others replace meanwhile
