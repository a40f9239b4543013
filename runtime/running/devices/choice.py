"""Which device `auto` takes: the one that was fastest in a short trial, kept for each machine and bundle.

A trial runs in a process of its own, so that a driver that crashes or hangs there costs nothing but the trial.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.device_graphs import why_cpu_only
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.running.devices.finding import Device, find_devices, other_devices
from rrt_edge.runtime.running.devices.providers import PROVIDERS, VARIABLE
from rrt_edge.runtime.system.children import can_start
from rrt_edge.runtime.system.files import new_file
from rrt_edge.runtime.system.home import home
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.machine import this_machine
from rrt_edge.runtime.system.onnxruntime import onnxruntime

PATIENCE = 300  # seconds of a trial
DAY = 24 * 3600.0  # seconds
log = logging.getLogger(__name__)


def choose_device(bundle: Path, manifest: Manifest) -> str:
    """The device that runs a bundle fastest here. Trials, failures and the choice are logged."""
    reason = why_cpu_only(bundle, manifest)
    if reason is not None:
        log.info("device cpu: %s", reason)
        return "cpu"
    others = _hardware()
    if not others:
        log.info("device cpu: there is no other")
        return "cpu"
    if not can_start():  # it would start the application itself
        log.warning("device cpu: this program cannot try %s; name one", ", ".join(device.name for device in others))
        return "cpu"
    key = _key(manifest, others)
    known = _read().get(key, {})
    untried = [name for name in ("cpu", *(device.name for device in others)) if not _counts(known.get(name))]
    if untried:
        log.warning("trying which device runs %s fastest: %s", bundle, ", ".join(untried))
        known = {**known, **{name: _measured(bundle, name) for name in untried}}
        _keep(key, known)
    seconds = {name: float(result) for name, result in known.items() if isinstance(result, float)}
    for name, result in known.items():
        if isinstance(result, dict):
            log.warning("device %s is left out: %s", name, result["problem"])
    chosen = min(seconds, key=lambda name: seconds[name], default="cpu")
    times = ", ".join(f"{name} {result:.2f} s" for name, result in seconds.items())
    log.info("device %s: the fastest in a trial (%s)", chosen, times or "none ended")
    return chosen


def record_failure(manifest: Manifest, device: str, problem: str) -> None:
    """A device that ended its trial did not load a bundle: it is left out for a day."""
    key = _key(manifest, _hardware())
    _keep(key, {**_read().get(key, {}), device: _failed(problem)})


def _hardware() -> list[Device]:
    """Return the devices that `auto` may take beside the CPU."""
    return [device for device in other_devices() if device.usable and not device.software]


def _counts(result: Any) -> bool:
    """Whether the result of a device's trial still counts: a time always does, a failure for a day."""
    return isinstance(result, float) or (isinstance(result, dict) and time.time() - result["at"] < DAY)


def _failed(problem: str) -> dict[str, Any]:
    return {"problem": problem, "at": time.time()}


def _key(manifest: Manifest, devices: list[Device]) -> str:
    """A name for this machine, what it runs with, and the bundle."""
    plugins = [plugin.replace("_", "-") for device in devices for plugin in PROVIDERS[device.name].plugins]
    facts = [manifest.fingerprint, onnxruntime.__version__, this_machine().processor]
    facts += [f"{device.name} {device.hardware}" for device in devices] + [
        f"{name} {_version(name)}" for name in plugins
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tried_devices() -> list[Device]:
    """`find_devices`, each tried with a small sum: what does not run it is not usable."""
    devices = []
    for device in find_devices():
        problem = _trial(device.name).get("problem") if device.usable and device.name != "cpu" else None
        devices.append(device if problem is None else dataclasses.replace(device, usable=False, problem=str(problem)))
    return devices


def _measured(bundle: Path, device: str) -> Any:
    """Seconds of a prompt and a reply, or the problem."""
    report = _trial(device, str(bundle))
    return _failed(str(report["problem"])) if "problem" in report else float(report["seconds"])


def _trial(*arguments: str) -> dict[str, Any]:
    """Run a trial in a process of its own; return its `seconds`, or the `problem`."""
    command = [sys.executable, "-P", "-m", "rrt_edge.runtime.measuring.device_trial", *arguments]
    hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # on Windows
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=PATIENCE,
            env={**os.environ, VARIABLE: "cpu"}, creationflags=hidden,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": f"the trial did not end within {PATIENCE} s"}
    except OSError as error:
        return {"problem": f"the trial could not be run ({error})"}
    try:
        report = json.loads(ended.stdout.splitlines()[-1])
        if "seconds" in report or "problem" in report:
            return dict(report)
    except (IndexError, ValueError, TypeError):  # it said something else, or nothing
        pass
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    return {"problem": f"the trial ended with status {ended.returncode}" + (f" ({last})" if last else "")}


def _place() -> Path:
    return home() / "devices.json"


def _read() -> dict[str, dict[str, Any]]:
    """Return the results of earlier trials by bundle and machine: seconds, or a problem and when it occurred."""
    try:
        kept = parse_json(_place().read_text("utf-8"))
        return {key: sound for key, results in kept.items() if (sound := _sound(results))}
    except (OSError, ValueError, AttributeError):
        return {}


def _sound(results: Any) -> dict[str, Any]:
    """The entries that say something."""
    if not isinstance(results, dict):
        return {}
    return {
        name: result
        for name, result in results.items()
        if isinstance(result, float)
        or (isinstance(result, dict) and isinstance(result.get("problem"), str) and isinstance(result.get("at"), float))
    }


def _keep(key: str, known: dict[str, Any]) -> None:
    """Beside what another process may have written meanwhile."""
    place = _place()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_file(place) as partial:  # nobody else writes between reading and writing
            partial.write_text(json.dumps({**_read(), key: known}, indent=1), "utf-8")
    except (OSError, RRTEdgeError) as error:
        log.info("%s: the choice cannot be kept (%s)", place, error)
