"""Opens a bundle's runner on a device: the loop graph on the CPU, the block driven depth by depth elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.device_graphs import why_cpu_only
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import DeviceError, OutOfMemoryError
from rrt_edge.runtime.running.cpu import Graph
from rrt_edge.runtime.running.devices.choice import choose_device, record_failure
from rrt_edge.runtime.running.devices.device import OpenDevice
from rrt_edge.runtime.running.devices.runner import DeviceGraph
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.runner import AnyRunner
from rrt_edge.runtime.running.tracing import traced

log = logging.getLogger(__name__)


def open_runner(
    bundle: Path,
    manifest: Manifest,
    device: str,
    context: int,
    *,
    threads: int | None = None,
    kv_budget_bytes: int | None = None,
    graph_folder: Path | None = None,
) -> AnyRunner:
    """
    Args:
        context: tokens a conversation may hold.
        kv_budget_bytes: what keys and values of all conversations may take.
        graph_folder: where the CPU's graph is, if not in the bundle (`packed_graph`).

    Raises:
        DeviceError: the device is not there, or cannot run this bundle; says why.
        BundleError: the bundle is damaged.
    """
    budget = KVBudget(kv_budget_bytes)
    if device == "cpu":
        folder = graph_folder or bundle
        return Graph(folder, manifest.architecture, manifest.rule, threads, context, budget)
    opened = OpenDevice(device)
    reason = why_cpu_only(bundle, manifest.architecture, manifest.rule)
    if reason is not None:
        raise DeviceError(f"device {device}: {bundle} runs on the CPU only, for {reason}")
    return DeviceGraph(bundle, manifest.architecture, opened, context=context, threads=threads, budget=budget)


def open_on(device: str, bundle: Path, manifest: Manifest, context: int, **options: Any) -> tuple[AnyRunner, str]:
    """As `open_runner`, also for `auto`: (the runner, what it runs on).

    Raises:
        DeviceError: a device named is not there, or cannot run this bundle.
    """
    chosen = choose_device(bundle, manifest) if device == "auto" else device
    try:
        runner = open_runner(bundle, manifest, chosen, context, **options)
    except (DeviceError, OutOfMemoryError) as error:
        if device != "auto" or chosen == "cpu":
            raise
        log.warning("%s; the CPU runs it", error)
        record_failure(manifest, chosen, str(error))
        chosen = "cpu"
        runner = open_runner(bundle, manifest, chosen, context, **options)
    return traced(runner), chosen
