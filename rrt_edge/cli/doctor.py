"""`doctor`: whether everything here is as it should be, and what to do where it is not."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rrt_edge.cli.common import BundlePath, guarded, json_option, print_json
from rrt_edge.cli.extras import extras
from rrt_edge.cli.help import command
from rrt_edge.cli.terminal import size
from rrt_edge.runtime.errors import BundleError, RRTEdgeError
from rrt_edge.runtime.system.version import __version__

NEEDED = ("onnxruntime", "numpy", "tokenizers", "jinja2", "huggingface_hub", "click", "rich")
BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
LITTLE_SPACE = 1 << 30  # bytes


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what helps."""

    what: str
    remedy: str


@dataclass
class Report:
    """What was found, by section; `notes` are worth knowing, `problems` are to be mended."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, what: str, remedy: str) -> None:
        self.problems.append(Problem(" ".join(what.split()), remedy))


@command(epilog="Example: rrt-edge doctor demo")
@click.argument("bundle", required=False, type=BundlePath())
@json_option
@guarded
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Check this installation: versions, the machine, onnxruntime, the installed bundles.

    With BUNDLE, a token of it too. Ends with status 1 where something is wrong; each problem comes with its remedy.
    """
    report = Report()
    _versions(report)
    _machine(report)
    _onnxruntime(report)
    _threads(report)
    _bundles(report, bundle)
    if bundle is not None:
        _bundle(report, bundle)
    if as_json:
        problems = [asdict(problem) for problem in report.problems]
        print_json({"ok": not problems, **report.sections, "notes": report.notes, "problems": problems})
    else:
        Console().print(_shown(report))
    click.get_current_context().exit(1 if report.problems else 0)


def _versions(report: Report) -> None:
    versions = {name: _version(name) for name in NEEDED}
    report.sections["versions"] = {"rrt-edge": __version__, "python": platform.python_version(), **versions}
    report.sections["extras"] = {extra: {name: _version(name) for name in names} for extra, names in extras().items()}
    builds = [name for name in BUILDS if _version(name)]
    if len(builds) > 1:
        every = " ".join(builds)
        remedy = f"pip uninstall {every}, then pip install {builds[-1]}"
        report.wrong(f"{' and '.join(builds)} are both installed and overwrite each other", remedy)
    for needed, version, extra in _unmet():
        if needed.name == "onnxruntime" and version is None and builds:
            continue  # another build of it
        is_there = "is not installed" if version is None else f"{version} is too old"
        target = f"rrt-edge[{extra}]" if extra else f"{needed.name}{needed.specifier}"
        report.wrong(f"{needed.name} {is_there}", f"pip install --upgrade '{target}'")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unmet() -> list[tuple[Any, str | None, str | None]]:
    """Requirements that are not met, the version there, and the extra that asks for it; of extras the old ones only."""
    from packaging.requirements import Requirement

    unmet = []
    for line in importlib.metadata.requires("rrt-edge") or []:
        needed = Requirement(line)
        asking = [extra for extra in extras() if needed.marker and needed.marker.evaluate({"extra": extra})]
        always = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if needed.name == "rrt-edge" or not (always or asking):
            continue
        version = _version(needed.name)
        missing = version is None and always
        if missing or (version is not None and not needed.specifier.contains(version, prereleases=True)):
            unmet.append((needed, version, None if always else asking[0]))
    return unmet


def _machine(report: Report) -> None:
    from rrt_edge.runtime.system.machine import this_machine

    machine = this_machine()
    report.sections["machine"] = asdict(machine)
    features = machine.features or {}
    for basic in ("AVX2", "NEON dotprod"):
        if features.get(basic) is False:
            report.notes.append(f"the processor has no {basic}: 4-bit bundles run several times slower than they could")
    quota, cores = machine.core_quota, machine.usable_cores
    if quota is not None and cores is not None and quota < cores:
        report.notes.append(f"a quota of {quota:g} of {cores} cores holds here, and decides how many threads compute")


def _onnxruntime(report: Report) -> None:
    facts: dict[str, Any] = {"providers": None, "telemetry_off": None}
    report.sections["onnxruntime"] = facts
    try:
        importlib.import_module("rrt_edge.runtime.running.cpu")  # turns telemetry off first
        onnxruntime = importlib.import_module("onnxruntime")
    except Exception as error:  # a library that does not load raises ImportError or OSError, and others by build
        remedy = "pip install --force-reinstall onnxruntime"
        if sys.platform == "win32":
            remedy = "install Microsoft's Visual C++ Redistributable, or " + remedy
        return report.wrong(f"onnxruntime cannot be imported ({error})", remedy)
    facts["providers"] = onnxruntime.get_available_providers()
    setting = os.environ.get("ORT_DISABLE_TELEMETRY")
    facts["telemetry_off"] = setting == "1"
    if setting != "1":
        what = f"ORT_DISABLE_TELEMETRY is {setting!r} in this environment, so onnxruntime may send telemetry"
        return report.wrong(what, "unset it; rrt-edge then sets it to 1")
    return None


def _threads(report: Report) -> None:
    """How many threads compute by default, and how they wait for work."""
    from rrt_edge.runtime.system import openmp
    from rrt_edge.runtime.system.machine import default_threads

    threads: dict[str, Any] = {"onnxruntime": default_threads() or "one for each physical core"}
    report.sections["threads"] = threads
    if report.sections["onnxruntime"]["providers"] is not None:
        from rrt_edge.runtime.system.onnxruntime import SPIN_MICROSECONDS

        threads["onnxruntime_spins_microseconds"] = SPIN_MICROSECONDS
    threads["torch_waits"] = os.environ[openmp.WAIT_POLICY]


def _bundles(report: Report, bundle: Path | None) -> None:
    """The installed bundles; what is wrong with the one asked for is told elsewhere."""
    from rrt_edge.runtime.library.store import bundles_folder, downloads_folder, installed, leftovers, size_of
    from rrt_edge.runtime.system.home import HOME

    folder = bundles_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    killed = leftovers()
    left = sum(map(size_of, killed))
    downloads = size_of(downloads_folder()) - sum(size_of(path) for path in killed if path.parent == downloads_folder())
    facts: dict[str, Any] = {"folder": str(folder), "free_bytes": free}
    facts |= {"unfinished_download_bytes": downloads, "leftover_bytes": left}
    report.sections["bundles"] = facts
    if not (there.is_dir() and os.access(there, os.W_OK)):
        report.wrong(f"{there} cannot be written, so no bundle can be installed", f"set {HOME} to another folder")
    if free < LITTLE_SPACE:
        report.notes.append(f"{there}: {free / 1e6:.0f} MB are free; {HOME} may name a folder on another disk")
    if downloads:
        report.notes.append(f"{downloads_folder()} keeps unfinished downloads; pull again to go on, or delete it")
    if killed:
        names = ", ".join(path.name for path in killed)
        report.notes.append(f"commands that were killed left {names} ({size(left)}); the next pull deletes them")
    facts["installed"] = []
    for entry in installed():
        facts["installed"].append(entry.name)
        if entry.problem and entry.folder != bundle:
            remedy = f"pull it again with --force, or rrt-edge rm {entry.name}"
            report.wrong(f"the installed bundle {entry.name} is damaged: {entry.problem}", remedy)


def _bundle(report: Report, bundle: Path) -> None:
    from rrt_edge.runtime.bundle.manifest import Manifest
    from rrt_edge.runtime.running.kv_choice import bytes_per_token

    facts: dict[str, Any] = {"folder": str(bundle), "hashes_ok": False, "load_seconds": None, "token_seconds": None}
    report.sections["bundle"] = facts
    again = "export or pull the bundle again"
    try:
        manifest = Manifest.read(bundle)
        manifest.check_hashes(bundle)
    except BundleError as error:
        return report.wrong(str(error).partition("; ")[0], again)
    facts |= {"hashes_ok": True, "kv_bytes_per_token": bytes_per_token(manifest.architecture)}
    weights = sum(manifest.weight_bytes.values())
    available = report.sections["machine"]["available_bytes"]
    if available < weights:
        message = f"{size(weights)} of weights, and {size(available)} of memory are available"
        return report.wrong(f"{bundle}: has {message}", "end other programs, or take a smaller bundle")
    try:
        facts |= _run(bundle)
    except RRTEdgeError as error:
        report.wrong(f"{bundle} does not run: {error}", "rrt-edge verify says more; " + again)
    except ImportError as error:
        report.wrong(f"{bundle} does not run: {error}", "see the problems above")
    return None


def _run(bundle: Path) -> dict[str, Any]:
    """Seconds to load it, and for one token."""
    from rrt_edge.runtime import Model, Sampling

    start = time.perf_counter()
    with Model.load(bundle, device="cpu") as model:
        loaded = time.perf_counter()
        list(model.stream([0], Sampling(max_tokens=1)))
        return {"load_seconds": round(loaded - start, 3), "token_seconds": round(time.perf_counter() - loaded, 3)}


def _shown(report: Report) -> Group:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, rows in report.sections.items():
        table.add_row(Text(title, style="bold"))
        for name, value in rows.items():
            label = name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
            table.add_row(f"  {label}", Text(_words(value, name)))
    lines = [Text(f"note: {note}", style="yellow") for note in report.notes]
    lines += [Text(f"problem: {problem.what}; {problem.remedy}", style="red") for problem in report.problems]
    return Group(table, *lines, *([] if report.problems else [Text("all is well", style="green")]))


def _words(value: Any, name: str) -> str:
    """A value as people read it."""

    if isinstance(value, dict):  # what is there, and what is not
        there = [key if entry is True else f"{key} {entry}" for key, entry in value.items() if entry]
        lacking = [key for key, entry in value.items() if not entry]
        hint = f" (pip install 'rrt-edge[{name}]')" if name in extras() else ""
        gone = [f"{'missing' if hint else 'without'} {', '.join(lacking)}{hint}"] if lacking else []
        return "; ".join([", ".join(there), *gone] if there else gone)
    if value is None:
        return "not installed" if name in NEEDED else "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_seconds"):
        return f"{value} s"
    return f"{value:g}" if isinstance(value, float) else str(value)
