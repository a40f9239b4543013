"""Check a bundle on its own: sizes, hashes, that its graph is the one its manifest describes, and runs a token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrt_edge.runtime.bundle.block_contract import BLOCK_GRAPH
from rrt_edge.runtime.bundle.declared import check_declared, check_tokenizer
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.bundle.tokenizer_trial import try_tokenizer
from rrt_edge.runtime.errors import BundleError, RRTEdgeError
from rrt_edge.runtime.running.block import BlockBinding
from rrt_edge.runtime.running.cpu import Binding, Graph
from rrt_edge.runtime.running.opening import open_on
from rrt_edge.runtime.running.runner import AnyRunner, Call
from rrt_edge.runtime.system.progress import Progress

TRIAL_SECONDS = 60.0  # that one token may take
OTHER_TEXTS = 2  # times what bits cost on the texts that export measured them on
LEAST_KL, LEAST_DIFFER = 0.001, 0.005  # beside that, for costs too small to be multiplied


@dataclass(frozen=True)
class Tolerance:
    """The largest differences from its source that a bundle may have at every depth; None is not checked.

    `max_abs_logit_error` is relative to max(1, largest absolute logit of the source); `kl` is the mean
    KL(source || bundle) in nats; `top1_agreement` the share of positions with the same most likely token.
    """

    max_abs_logit_error: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None


STRICT = {
    32: Tolerance(max_abs_logit_error=1e-4),
    16: Tolerance(kl=0.001, top1_agreement=0.995),
    8: Tolerance(kl=0.01, top1_agreement=0.99),
    4: Tolerance(kl=0.05, top1_agreement=0.95),
}


def strict_tolerance(manifest: Manifest, runner: AnyRunner | None = None) -> Tolerance:
    """That of the fewest bits that weights, keys or values are kept in, or that a device computes in.

    Where export measured what its bits cost, a bundle is held to that: other texts may lose up to `OTHER_TEXTS` times
    as much.
    """
    computed = runner.bits if runner is not None else 32
    strict = STRICT[min(manifest.quantization.bits, manifest.architecture.kv_bits, computed)]
    if manifest.cost is None or computed < manifest.quantization.bits:
        return strict
    kl = max(depth.kl for depth in manifest.cost.depths)
    differ = 1 - min(depth.top1_agreement for depth in manifest.cost.depths)
    return Tolerance(kl=OTHER_TEXTS * kl + LEAST_KL, top1_agreement=max(0.0, 1 - OTHER_TEXTS * differ - LEAST_DIFFER))


@dataclass(frozen=True)
class DepthReport:
    """How the bundle's logits at one depth differ from the source's."""

    depth: int
    max_abs_logit_error: float
    kl: float
    top1_agreement: float


@dataclass(frozen=True)
class VerifyReport:
    """`depths` is empty without a source; `problem` says what failed, where something did."""

    ok: bool
    hashes_ok: bool
    depths: tuple[DepthReport, ...]
    tolerance: Tolerance
    positions: int
    problem: str | None
    device: str = "cpu"


def check(bundle: Path | str, device: str = "cpu", progress: Progress | None = None) -> VerifyReport:
    """Check every file's hash and the graph's inputs and outputs; or, of a device, that it runs the bundle.

    `progress` is called with the files hashed and all of them.

    Raises:
        DeviceError: the device is not there, or cannot run the bundle.
        BundleError: there is no manifest, or it cannot be read; a damaged file is reported, not raised.
    """
    folder = Path(bundle)
    report, runner = load_checked(folder, Manifest.read(folder), device, progress)
    if runner is not None:
        runner.close()
    return report


def load_checked(
    folder: Path, manifest: Manifest, device: str = "cpu", progress: Progress | None = None
) -> tuple[VerifyReport, AnyRunner | None]:
    """Return what `check` reports, and the runner where nothing is wrong with the bundle."""
    tolerance = strict_tolerance(manifest)
    try:
        manifest.check_hashes(folder, progress=progress)
    except BundleError as error:
        return VerifyReport(False, False, (), tolerance, 0, str(error)), None
    try:
        try_tokenizer(folder, manifest.architecture.vocabulary)
        check_tokenizer(folder, manifest, read_tokenizer(folder))
    except BundleError as error:
        return VerifyReport(False, True, (), tolerance, 0, str(error)), None
    if device == "cpu" and (folder / BLOCK_GRAPH).is_file():
        try:
            _try_loop_graph(folder, manifest)
        except RRTEdgeError as error:
            return VerifyReport(False, True, (), tolerance, 0, str(error)), None
    try:
        runner, device = open_on(device, folder, manifest, 1)
    except BundleError as error:
        return VerifyReport(False, True, (), tolerance, 0, str(error)), None
    try:
        try_token(runner)
    except RRTEdgeError as error:
        runner.close()
        return VerifyReport(False, True, (), tolerance, 0, str(error)), None
    return VerifyReport(True, True, (), strict_tolerance(manifest, runner), 0, None, device), runner


def _try_loop_graph(folder: Path, manifest: Manifest) -> None:
    """Run a token in the loop graph, which other hosts run, and this one for several sequences.

    Raises:
        RRTEdgeError: it does not load, or as `try_token`.
    """
    check_declared(folder, manifest)
    graph = Graph(folder, manifest.architecture, manifest.rule, None)
    try:
        try_token(graph)
    finally:
        graph.close()


def try_token(runner: AnyRunner, seconds: float = TRIAL_SECONDS) -> None:
    """Run one token through all depths.

    Raises:
        RRTEdgeError: the graph fails, takes longer than a token may, or computes what is no number.
    """
    binding = runner.bind()
    if isinstance(binding, Binding | BlockBinding):  # a device's driver has bounds of its own
        binding.calls.step_seconds = seconds
    call = Call(np.zeros(1, np.int64), position=0, first=1, last=runner.architecture.loops, logit_rows=(0,))
    tried = runner.run(binding, runner.new_cache(), call)
    if not (np.isfinite(tried.logits).all() and np.isfinite(tried.gate).all()):
        raise RRTEdgeError("the graph computes logits or gates that are no finite numbers; its weights may be damaged")
