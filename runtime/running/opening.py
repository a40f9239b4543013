"""Opens a bundle's runner on a device: the CPU's graphs, or the block driven depth by depth elsewhere."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from rrt_edge.runtime.bundle.block_contract import BLOCK_GRAPH, has_block_graph
from rrt_edge.runtime.bundle.declared import check_declared
from rrt_edge.runtime.bundle.device_graphs import why_cpu_only
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import DeviceError, OutOfMemoryError
from rrt_edge.runtime.running.block import BlockRunner
from rrt_edge.runtime.running.cpu import Graph
from rrt_edge.runtime.running.devices.choice import choose_device, record_failure
from rrt_edge.runtime.running.devices.device import OpenDevice
from rrt_edge.runtime.running.devices.runner import DeviceGraph
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.load_options import LoadOptions
from rrt_edge.runtime.running.merged import MergedRunner
from rrt_edge.runtime.running.runner import AnyRunner
from rrt_edge.runtime.running.tracing import traced

DEFAULTS = LoadOptions()
log = logging.getLogger(__name__)


def open_runner(
    bundle: Path,
    manifest: Manifest,
    device: str,
    context: int,
    options: LoadOptions = DEFAULTS,
    graph_folder: Path | None = None,
) -> AnyRunner:
    """
    Args:
        context: tokens a conversation may hold.
        options: threads, KV budget and how weights are read are taken from them.
        graph_folder: where the CPU's graph is, if not in the bundle (`packed_graph`).

    Raises:
        DeviceError: the device is not there, or cannot run this bundle; says why.
        BundleError: the bundle is damaged.
    """
    check_declared(bundle, manifest)
    budget, threads = KVBudget(options.kv_budget_bytes), options.threads
    if device == "cpu":
        shape, rule, folder = manifest.architecture, manifest.rule, graph_folder or bundle
        if manifest.merged:
            return MergedRunner(folder, shape, threads, context, budget, options.mmap)
        if (bundle / BLOCK_GRAPH).is_file() and has_block_graph(shape, rule.projects):
            loop_graph = partial(Graph, folder, shape, rule, threads, context, budget, options.mmap)
            return BlockRunner(folder, shape, threads, context, budget, options.mmap, loop_graph)
        return Graph(folder, shape, rule, threads, context, budget, options.mmap)
    opened = OpenDevice(device)
    reason = why_cpu_only(bundle, manifest)
    if reason is not None:
        raise DeviceError(f"device {device}: {bundle} runs on the CPU only, for {reason}")
    return DeviceGraph(bundle, manifest.architecture, opened, context=context, threads=threads, budget=budget)


def open_on(
    device: str,
    bundle: Path,
    manifest: Manifest,
    context: int,
    options: LoadOptions = DEFAULTS,
    graph_folder: Path | None = None,
) -> tuple[AnyRunner, str]:
    """Open a bundle's runner on a device, or on the one that `auto` chooses: (the runner, what it runs on).

    Raises:
        DeviceError: a device named is not there, or cannot run this bundle.
    """
    chosen = choose_device(bundle, manifest) if device == "auto" else device
    try:
        runner = open_runner(bundle, manifest, chosen, context, options, graph_folder)
    except (DeviceError, OutOfMemoryError) as error:
        if device != "auto" or chosen == "cpu":
            raise
        log.warning("%s; the CPU runs it", error)
        record_failure(manifest, chosen, str(error))
        chosen = "cpu"
        runner = open_runner(bundle, manifest, chosen, context, options, graph_folder)
    return traced(runner), chosen
