"""Which device `auto` takes: the one that was fastest in a short trial, kept for each machine and bundle.

A trial runs in a process of its own, so that a driver that crashes or hangs there costs nothing but the trial.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from rrt_edge.runtime.device_archive import why_cpu_only
from rrt_edge.runtime.devices import Device, find_devices
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.files import new_file
from rrt_edge.runtime.machine import this_machine
from rrt_edge.runtime.manifest import Manifest
from rrt_edge.runtime.ort import onnxruntime
from rrt_edge.runtime.providers import PROVIDERS
from rrt_edge.runtime.store import home

PATIENCE = 300  # seconds of a trial
log = logging.getLogger(__name__)


def choose_device(bundle: Path, manifest: Manifest) -> str:
    """The device that runs a bundle fastest here. Trials, failures and the choice are logged."""
    others = [one for one in find_devices() if one.name != "cpu" and one.usable and not one.software]
    if not others:
        log.info("device cpu: there is no other")
        return "cpu"
    reason = why_cpu_only(bundle, manifest.architecture, manifest.kv_rule)
    if reason is not None:
        log.info("device cpu: %s", reason)
        return "cpu"
    key, kept = _key(manifest, others), _read()
    if key not in kept:
        log.warning("trying once which device runs %s fastest: cpu, %s", bundle, ", ".join(one.name for one in others))
        kept[key] = {name: _measured(bundle, name) for name in ("cpu", *(one.name for one in others))}
        _write(kept)
    seconds = {name: found for name, found in kept[key].items() if isinstance(found, float)}
    chosen = min(seconds, key=lambda name: seconds[name], default="cpu")
    told = ", ".join(f"{name} {found:.2f} s" for name, found in seconds.items())
    log.info("device %s: the fastest in a trial (%s)", chosen, told or "none ended")
    return chosen


def forget_choices() -> None:
    """The next load tries anew: something has changed that the key does not tell."""
    _write({})


def _key(manifest: Manifest, devices: list[Device]) -> str:
    """A name for this machine, what it runs with, and the bundle."""
    plugins = [plugin.replace("_", "-") for one in devices for plugin in PROVIDERS[one.name].plugins]
    facts = [manifest.fingerprint, onnxruntime.__version__, this_machine().processor]
    facts += [f"{one.name} {one.hardware}" for one in devices] + [f"{name} {_version(name)}" for name in plugins]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tried_devices() -> list[Device]:
    """`find_devices`, each tried with a small sum: what does not run it is not usable."""
    found = []
    for device in find_devices():
        problem = _trial(device.name).get("problem") if device.usable and device.name != "cpu" else None
        found.append(device if problem is None else dataclasses.replace(device, usable=False, problem=str(problem)))
    return found


def _measured(bundle: Path, device: str) -> float | str:
    """Seconds of a prompt and a reply, or why there are none."""
    told = _trial(device, str(bundle))
    if "problem" in told:
        log.warning("device %s is left out: %s", device, told["problem"])
        return str(told["problem"])
    return float(told["seconds"])


def _trial(*arguments: str) -> dict[str, Any]:
    """What `device_trial` says: `seconds`, or the `problem`."""
    command = [sys.executable, "-P", "-m", "rrt_edge.runtime.device_trial", *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE)
        told = json.loads(ended.stdout.splitlines()[-1])
        return told if isinstance(told, dict) else {"problem": f"the trial said {told}"}
    except subprocess.TimeoutExpired:
        return {"problem": f"the trial did not end within {PATIENCE} s"}
    except IndexError:  # nothing was said
        return {"problem": f"the trial ended with status {ended.returncode}"}
    except (OSError, ValueError) as error:
        return {"problem": f"the trial could not be run ({error})"}


def _place() -> Path:
    return home() / "devices.json"


def _read() -> dict[str, dict[str, float | str]]:
    try:
        kept = json.loads(_place().read_text("utf-8"))
        return kept if isinstance(kept, dict) and all(isinstance(one, dict) for one in kept.values()) else {}
    except (OSError, ValueError):
        return {}


def _write(kept: dict[str, dict[str, float | str]]) -> None:
    place = _place()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_file(place) as partial:
            partial.write_text(json.dumps(kept, indent=1), "utf-8")
    except (OSError, RRTEdgeError) as error:
        log.info("%s: the choice cannot be kept (%s)", place, error)
