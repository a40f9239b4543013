"""A device in use: sessions and tensors on it, one call at a time, every failure noticed."""

from __future__ import annotations

import logging
import math
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.errors import BadInputError, DeviceError, OutOfMemoryError, RRTEdgeError
from rrt_edge.runtime.running.devices.driver_log import complaint
from rrt_edge.runtime.running.devices.finding import ep_device
from rrt_edge.runtime.running.devices.providers import PROVIDERS
from rrt_edge.runtime.system.onnxruntime import CPU, first_line, onnxruntime, session_options

RUNNING = "failed while running the model"
LARGEST = 2 << 30  # bytes of a tensor: reading a larger one back crashes WebGPU
_OUT_OF_MEMORY = (
    "out of memory", "out_of_device_memory", "out_of_host_memory", "out_of_memory", "failed to allocate", "bad_alloc",
    "bad allocation", "max buffer size", "is invalid due to a previous error", "failed to download data from buffer",
    "failed to create gpu buffer",
)  # fmt: skip
# An ONNX model of a convolution of one number by 1. Packing its weight makes the WebGPU provider free those of sessions
# that have ended; without it they stay until the process ends.
_CONVOLUTION = bytes.fromhex(
    "08083a630a0f0a01780a01771201792204436f6e761201672a13080108010801080110014201774a040000803f5a1b0a017812160a1408"
    "0112100a0208010a0208010a0208010a020801621b0a017912160a14080112100a0208010a0208010a0208010a02080142040a001011"
)
log = logging.getLogger(__name__)


class OpenDevice:
    """A device to make sessions for and tensors on. `lock`: providers take calls one by one, whichever model's."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            DeviceError: there is no such device here; says what to install.
        """
        if name not in PROVIDERS:
            raise BadInputError(f"device {name!r}: choose from auto, {', '.join(PROVIDERS)}")
        self.name, self._provider, self._turn = name, PROVIDERS[name], _turn(name)
        self.lock = self._turn.lock
        if name == "cuda":
            _preload_cuda()
        self._ep_device = None if name == "cpu" else ep_device(name)
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
            threads: how many compute what runs on the CPU; by default as `session_options` says.
            profile: where to write a profile, as the beginning of a file's name.

        Raises:
            DeviceError: onnxruntime cannot make one.
            OutOfMemoryError: there is no room.
        """
        options = session_options(threads)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for `taken`
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        provider = self._provider.execution_provider
        with self._noticing("cannot load the model", DeviceError):
            if self._ep_device is not None:
                options.add_provider_for_devices([self._ep_device], dict(self._provider.options))
                return onnxruntime.InferenceSession(model, options)
            made = onnxruntime.InferenceSession(model, options, providers=list(dict.fromkeys([provider, CPU])))
            if made.get_providers()[0] != provider:  # onnxruntime only warns and takes the CPU
                remedy = f"{self._provider.hardware}, or {self._provider.install}"
                raise DeviceError(f"device {self.name}: {provider} does not start; {remedy}")
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
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size >= LARGEST:
            raise OutOfMemoryError(f"device {self.name}: a tensor of {size} bytes is too large; lower the context")
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        with self._noticing("cannot make a tensor"):
            if self._memory_info is not None:
                tensor = make(list(shape), dtype, memory_info=self._memory_info)
            else:
                tensor = make(list(shape), dtype, self._provider.memory if self.keeps_memory else "cpu")
        if self.keeps_memory:
            weakref.finalize(tensor, self._turn.dead.append, tensor._ortvalue)
        return tensor

    @staticmethod
    def host(shape: Sequence[int], dtype: type[np.generic]) -> onnxruntime.OrtValue:
        """A tensor in the system's memory, for what the host reads."""
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype)

    def upload(self, array: NDArray[Any]) -> onnxruntime.OrtValue:
        """A copy of an array in the device's memory.

        Raises:
            OutOfMemoryError: there is no room.
        """
        with self.lock:
            tensor = self.empty(array.shape, array.dtype.type)
            with self._noticing("cannot take a tensor"):
                tensor.update_inplace(np.ascontiguousarray(array))
        return tensor

    def download(self, tensor: onnxruntime.OrtValue) -> NDArray[Any]:
        """A copy of a tensor on the host.

        Raises:
            OutOfMemoryError: there is no room for what the device copies through.
        """
        with self._noticing("cannot read a tensor"):
            copy: NDArray[Any] = tensor.numpy()
            return copy

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have the device for several calls; what goes wrong between them is told like what goes wrong in them."""
        with self._noticing(RUNNING):
            yield

    def run(self, session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> None:
        """
        Raises:
            OutOfMemoryError: there is no room for what it computes with.
            RRTEdgeError: onnxruntime failed.
        """
        with self._noticing(RUNNING):
            session.run_with_iobinding(binding)

    def call(self, session: onnxruntime.InferenceSession, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a session with arrays: all its outputs by name.

        Raises:
            OutOfMemoryError, RRTEdgeError: as `run`.
        """
        names = [output.name for output in session.get_outputs()]
        with self._noticing(RUNNING):
            return dict(zip(names, session.run(names, feeds), strict=True))

    def release(self) -> None:
        """Free what sessions that have ended have left on the device."""
        if self.name != "webgpu":
            return
        try:
            session = self.session(_CONVOLUTION, Path())
            for _ in range(2):  # once is sometimes a round late
                self.call(session, {"x": np.ones((1, 1, 1, 1), np.float32)})
        except RRTEdgeError as error:
            log.info("device %s: may keep the memory of what was closed (%s)", self.name, error)

    @contextmanager
    def _noticing(self, what: str, kind: type[RRTEdgeError] = RRTEdgeError) -> Iterator[None]:
        """Have the device, and raise our errors for all that goes wrong, what only the logger hears included."""
        turn = self._turn
        with turn.lock:
            if not turn.inside:
                turn.dead.clear()
                self._complaint()
            turn.inside += 1
            try:
                yield
                heard = self._complaint()
            except RRTEdgeError:
                raise
            except Exception as error:  # onnxruntime raises several unrelated types
                reason = self._complaint() or first_line(error)
                raise self._error(what, reason, kind, isinstance(error, MemoryError)) from error
            finally:
                turn.inside -= 1
            if heard is not None:
                raise self._error(what, heard, kind)

    def _complaint(self) -> str | None:
        return complaint() if self.name == "webgpu" else None

    def _error(self, what: str, reason: str, kind: type[RRTEdgeError], full: bool = False) -> RRTEdgeError:
        if full or any(sign in reason.lower() for sign in _OUT_OF_MEMORY):
            remedy = "close conversations, shorten the prompt, or use the CPU"
            return OutOfMemoryError(f"device {self.name}: its memory is full ({reason}); {remedy}")
        return kind(f"device {self.name}: onnxruntime {what} ({reason})")


class _Turn:
    """The turn on a device, shared by all that use it: its lock, its nesting, and tensors to be freed.

    Those are freed by whoever has the device next, for a provider may not bear that beside a call.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.RLock(), 0
        self.dead: deque[Any] = deque()


@cache
def _turn(name: str) -> _Turn:
    """One for each device, whichever models use it."""
    return _Turn()


@cache
def _preload_cuda() -> None:
    """The libraries that pip brings are where only onnxruntime looks, and only when it is asked to."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            preload(directory="")
