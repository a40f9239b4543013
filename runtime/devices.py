"""The devices that onnxruntime can run a bundle on here, by the names that `--device` takes."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.errors import BadInputError, DeviceError, OutOfMemoryError, RRTEdgeError
from rrt_edge.runtime.machine import gpu_memory_bytes, this_machine
from rrt_edge.runtime.ort import ERRORS_ONLY, first_line, onnxruntime, session_options
from rrt_edge.runtime.providers import PROVIDERS

log = logging.getLogger(__name__)
VENDORS = {
    0x10DE: "NVIDIA",
    0x1002: "AMD",
    0x8086: "Intel",
    0x106B: "Apple",
    0x5143: "Qualcomm",
    0x4D4F4351: "Qualcomm",
}
CPU = "CPUExecutionProvider"
_GPU_FIRST = ("GPU", "NPU", "CPU")
_OUT_OF_MEMORY = ("out of memory", "failed to allocate", "bad allocation", "bad_alloc", "out_of_memory", "oom")


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
    """All that have a name here, the CPU first; whether a GPU's driver works shows when a session is made."""
    machine = this_machine()
    cpu = Device("cpu", machine.processor or machine.platform, CPU, usable=True)
    return [cpu, *(_found(name) for name in PROVIDERS if name != "cpu")]


def _found(name: str) -> Device:
    provider = PROVIDERS[name]
    try:
        chosen = _ep_device(name)
    except DeviceError as error:
        return Device(name, "", provider.execution_provider, usable=False, problem=str(error))
    if chosen is None:
        return Device(name, "", provider.execution_provider, usable=True)
    hardware, kind = chosen.device, chosen.device.type.name
    vendor = VENDORS.get(hardware.vendor_id, hardware.vendor)
    described = hardware.metadata.get("Description") or f"{vendor} {kind}".strip()
    pci = (hardware.vendor_id, hardware.device_id) if kind == "GPU" else None
    return Device(name, described, provider.execution_provider, usable=True, software=kind == "CPU", pci=pci)


@cache
def _ep_device(name: str) -> Any:
    """onnxruntime's handle of a plug-in's best device; None where the provider is onnxruntime's own."""
    provider = PROVIDERS[name]
    installed = [plugin for plugin in provider.plugins if importlib.util.find_spec(plugin) is not None]
    for plugin in installed:
        _register(name, importlib.import_module(plugin).get_library_path())
    found = [one for one in onnxruntime.get_ep_devices() if one.ep_name in provider.names]
    if found:
        return min(found, key=lambda one: _GPU_FIRST.index(one.device.type.name))
    if provider.execution_provider in onnxruntime.get_available_providers() and not installed:
        return None
    if installed:
        raise DeviceError(f"device {name}: {provider.execution_provider} finds no hardware; {provider.hardware}")
    raise DeviceError(f"device {name}: {provider.execution_provider} is not installed; {provider.install}")


@cache
def _register(name: str, library: str) -> None:
    """Once in a process: onnxruntime refuses a library it has."""
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)  # the library speaks to the default logger
    try:
        onnxruntime.register_execution_provider_library(f"rrt-edge-{name}", library)
    except Exception as error:  # onnxruntime raises several unrelated types
        raise DeviceError(f"device {name}: its library cannot be loaded ({first_line(error)})") from error


class OpenDevice:
    """A device to make sessions for and tensors on. One call at a time runs on it: `lock`."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            DeviceError: there is no such device here; says what to install.
        """
        if name not in PROVIDERS:
            raise BadInputError(f"device {name!r}: choose from auto, {', '.join(PROVIDERS)}")
        self.name, self._provider, self.lock = name, PROVIDERS[name], _lock(name)
        self._ep_device = None if name == "cpu" else _ep_device(name)
        self._memory_info = None
        if self._ep_device is not None and self._provider.memory:
            self._memory_info = self._ep_device.memory_info(onnxruntime.OrtDeviceMemoryType.DEFAULT)

    @property
    def keeps_memory(self) -> bool:
        """Whether tensors stay in a memory of its own."""
        return self._memory_info is not None or bool(self._provider.memory and self._ep_device is None)

    def session(
        self, model: bytes, folder: Path, threads: int | None = None, profile: Path | None = None
    ) -> onnxruntime.InferenceSession:
        """A session over a model whose weights are in a folder's files; what it cannot run runs on the CPU.

        Args:
            threads: of the CPU; one for each core by default.
            profile: where to write a profile, as the beginning of a file's name.

        Raises:
            DeviceError: onnxruntime cannot make one.
        """
        options = session_options(threads)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for `taken`
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            if self._ep_device is not None:
                options.add_provider_for_devices([self._ep_device], {})
                return onnxruntime.InferenceSession(model, options)
            wanted = self._provider.execution_provider
            made = onnxruntime.InferenceSession(model, options, providers=list(dict.fromkeys([wanted, CPU])))
        except Exception as error:  # onnxruntime raises several unrelated types
            raise self._error("cannot load the model", error) from error
        if made.get_providers()[0] != wanted:  # onnxruntime only warns and takes the CPU
            raise DeviceError(f"device {self.name}: {wanted} does not start; {self._provider.hardware}")
        return made

    @staticmethod
    def taken(session: onnxruntime.InferenceSession) -> tuple[set[str], set[str]]:
        """The operators of a session that run on the device, and those left to the CPU."""
        device: set[str] = set()
        host: set[str] = set()
        for part in session.get_provider_graph_assignment_info():
            (host if part.ep_name == CPU else device).update(node.op_type for node in part.get_nodes())
        return device, host

    def empty(self, shape: Sequence[int], dtype: type[np.generic]) -> onnxruntime.OrtValue:
        """A tensor in the device's memory, of any numbers.

        Raises:
            OutOfMemoryError: there is no room.
        """
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        try:
            if self._memory_info is not None:
                return make(list(shape), dtype, memory_info=self._memory_info)
            return make(list(shape), dtype, self._provider.memory if self.keeps_memory else "cpu")
        except Exception as error:  # onnxruntime raises several unrelated types
            raise self._error("cannot make a tensor", error) from error

    @staticmethod
    def host(shape: Sequence[int], dtype: type[np.generic]) -> onnxruntime.OrtValue:
        """A tensor in the system's memory, for what the host reads."""
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype)

    def upload(self, array: NDArray[Any]) -> onnxruntime.OrtValue:
        """A copy of an array in the device's memory."""
        tensor = self.empty(array.shape, array.dtype.type)
        try:
            tensor.update_inplace(np.ascontiguousarray(array))
        except Exception as error:  # onnxruntime raises several unrelated types
            raise self._error("cannot take a tensor", error) from error
        return tensor

    def run(self, session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> None:
        """
        Raises:
            OutOfMemoryError: there is no room for what it computes with.
            RRTEdgeError: onnxruntime failed.
        """
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises several unrelated types
            raise self._error("failed while running the model", error) from error

    def _error(self, what: str, error: Exception) -> RRTEdgeError:
        reason = first_line(error)
        if any(sign in reason.lower() for sign in _OUT_OF_MEMORY):
            return OutOfMemoryError(
                f"device {self.name}: its memory is full ({reason}); close conversations, shorten the prompt, or use "
                "--device cpu"
            )
        if what.startswith("failed"):
            return RRTEdgeError(f"device {self.name}: onnxruntime {what} ({reason})")
        return DeviceError(f"device {self.name}: onnxruntime {what} ({reason})")


@cache
def _lock(name: str) -> threading.RLock:
    """One for each device, whichever models use it: providers take calls one by one."""
    return threading.RLock()
