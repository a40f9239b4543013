"""The devices that onnxruntime can run a bundle on here, by the names that `--device` takes."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

from rrt_edge.runtime.errors import DeviceError
from rrt_edge.runtime.running.devices.driver_log import hear_complaints
from rrt_edge.runtime.running.devices.providers import PROVIDERS, Provider
from rrt_edge.runtime.system.machine import NVIDIA, gpu_memory_bytes, nvidia_gpu, this_machine
from rrt_edge.runtime.system.onnxruntime import CPU, first_line, onnxruntime

VENDORS = {
    NVIDIA: "NVIDIA",
    0x1002: "AMD",
    0x8086: "Intel",
    0x106B: "Apple",
    0x5143: "Qualcomm",
    0x4D4F4351: "Qualcomm",
}
_GPU_FIRST = ("GPU", "NPU", "CPU")


@dataclass(frozen=True)
class Device:
    """A device by `name`, as `--device` takes it, and the hardware behind it.

    `usable`, or `problem` says why not and what helps. `software`: the processor in the place of a GPU. `memory_bytes`
    is None where the system does not say, as of a GPU that shares the system's memory.
    """

    name: str
    hardware: str
    provider: str
    usable: bool
    problem: str | None = None
    software: bool = False
    pci: tuple[int, int] | None = None  # vendor and device of a GPU

    @property
    def memory_bytes(self) -> int | None:
        if self.name == "cpu":
            return this_machine().memory_bytes
        return None if self.pci is None else gpu_memory_bytes(*self.pci)


def find_devices() -> list[Device]:
    """Return all devices, the CPU first; whether a GPU's driver works is known only when a session is made."""
    machine = this_machine()
    return [Device("cpu", machine.processor or machine.platform, CPU, usable=True), *other_devices()]


def other_devices() -> list[Device]:
    """Return all devices but the CPU."""
    return [_found(name) for name in PROVIDERS if name != "cpu"]


def _found(name: str) -> Device:
    provider = PROVIDERS[name]
    try:
        chosen = ep_device(name)
    except DeviceError as error:
        return Device(name, "", provider.execution_provider, usable=False, problem=str(error))
    if chosen is None:
        nvidia = nvidia_gpu()[0] if name == "cuda" else ""
        pci = (NVIDIA, 0) if nvidia else None
        return Device(name, nvidia, provider.execution_provider, usable=True, pci=pci)
    hardware, kind = chosen.device, chosen.device.type.name
    vendor = VENDORS.get(hardware.vendor_id, hardware.vendor)
    described = hardware.metadata.get("Description") or f"{vendor} {kind}".strip()
    pci = (hardware.vendor_id, hardware.device_id) if kind == "GPU" else None
    return Device(name, described, provider.execution_provider, usable=True, software=kind == "CPU", pci=pci)


@cache
def ep_device(name: str) -> Any:
    """onnxruntime's handle of a plug-in's best device; None where the provider is onnxruntime's own."""
    provider = PROVIDERS[name]
    installed = [plugin for plugin in provider.plugins if importlib.util.find_spec(plugin) is not None]
    devices = _ep_devices(provider)  # somebody else in this process may have registered it
    if not devices:
        for plugin in installed:
            _register(name, importlib.import_module(plugin).get_library_path())
        devices = _ep_devices(provider)
    if devices:
        hear_complaints()
        return min(devices, key=lambda device: _GPU_FIRST.index(device.device.type.name))
    if provider.execution_provider in onnxruntime.get_available_providers() and not installed:
        return None
    if installed:
        raise DeviceError(f"device {name}: {provider.execution_provider} finds no hardware; {provider.hardware}")
    raise DeviceError(f"device {name}: {provider.execution_provider} is not installed; {provider.install}")


def _ep_devices(provider: Provider) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name in provider.names]


@cache
def _register(name: str, library: str) -> None:
    """Once in a process: onnxruntime refuses a library it has."""
    hear_complaints()
    try:
        onnxruntime.register_execution_provider_library(f"rrt-edge-{name}", library)
    except Exception as error:  # onnxruntime raises several unrelated types
        raise DeviceError(f"device {name}: its library cannot be loaded ({first_line(error)})") from error
