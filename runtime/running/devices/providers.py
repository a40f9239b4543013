"""The devices by name, and the execution providers of onnxruntime that reach them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rrt_edge.runtime.bundle.kv_rule_names import LoadRule
from rrt_edge.runtime.bundle.kv_rules import KV_RULES

VARIABLE = "RRT_EDGE_DEVICE"  # names the device where nobody else does


@dataclass(frozen=True)
class Provider:
    """How a device is reached: an execution provider of onnxruntime, its own or one that a plug-in brings.

    `plugins`: packages that bring one; `also`: another name that it goes by there. `memory`: what onnxruntime calls the
    memory that hidden states, keys and values stay in; empty where they stay in the system's. `options`: of the
    plug-in. `install`: what makes it
    available; `hardware`: what helps where it finds nothing to run on.
    """

    execution_provider: str
    install: str
    plugins: tuple[str, ...] = ()
    also: str = ""
    memory: str = ""
    options: tuple[tuple[str, str], ...] = ()
    hardware: str = "install the GPU's driver"

    @property
    def names(self) -> tuple[str, ...]:
        return self.execution_provider, self.also


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "pip install onnxruntime"),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "pip install 'rrt-edge[webgpu]'",
        plugins=("onnxruntime_ep_webgpu",),
        memory="webgpu",
        # Else buffers that are freed, and those that found no memory, are kept and handed out again.
        options=(("storageBufferCacheMode", "lazyRelease"), ("uniformBufferCacheMode", "lazyRelease")),
    ),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
        plugins=("onnxruntime_ep_cuda", "onnxruntime_ep_cuda12", "onnxruntime_ep_cuda13"),
        also="CudaPluginExecutionProvider",
        memory="cuda",
    ),
    "dml": Provider("DmlExecutionProvider", "pip uninstall onnxruntime, then pip install onnxruntime-directml"),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "pip install 'rrt-edge[openvino]' (Linux or Windows on x86-64)",
        plugins=("onnxruntime_ep_openvino",),
        hardware="it takes Intel's processors, GPUs and NPUs only",
    ),
    "coreml": Provider("CoreMLExecutionProvider", "it is part of onnxruntime on a Mac"),
    "qnn": Provider(
        "QNNExecutionProvider",
        "pip install 'rrt-edge[qnn]' (Windows or Linux on arm64)",
        plugins=("onnxruntime_qnn",),
        hardware="it takes Qualcomm's NPUs only",
    ),
}

DEVICES = ("auto", *PROVIDERS)


def device_for(device: str | None, rules: Iterable[LoadRule | None]) -> str | None:
    """Return the device to use: the CPU where none is named and a KV rule is asked for that only the CPU follows."""
    cpu_only = any(rule is not None and rule != "auto" and not KV_RULES[rule].on_devices for rule in rules)
    return "cpu" if cpu_only and device in (None, "auto") else device
