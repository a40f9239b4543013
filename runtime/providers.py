"""The devices by name, and the execution providers of onnxruntime that reach them."""

from __future__ import annotations

from dataclasses import dataclass

VARIABLE = "RRT_EDGE_DEVICE"  # names the device where nobody else does


@dataclass(frozen=True)
class Provider:
    """How a device is reached: an execution provider of onnxruntime, its own or one that a plug-in package brings.

    `memory`: what onnxruntime calls the memory of its own provider that hidden states, keys and values can stay in;
    empty where they stay in the system's. `install`: what makes it available; `hardware`: what helps where it finds
    nothing to run on.
    """

    execution_provider: str
    install: str
    plugin: str = ""
    memory: str = ""
    hardware: str = "install the GPU's driver"


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "pip install onnxruntime"),
    "webgpu": Provider("WebGpuExecutionProvider", "pip install 'rrt-edge[webgpu]'", "onnxruntime_ep_webgpu"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
        "onnxruntime_ep_cuda",
        "cuda",
    ),
    "dml": Provider("DmlExecutionProvider", "pip uninstall onnxruntime, then pip install onnxruntime-directml"),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "pip install 'rrt-edge[openvino]' (Linux or Windows on x86-64)",
        "onnxruntime_ep_openvino",
        hardware="it takes Intel's processors, GPUs and NPUs only",
    ),
    "coreml": Provider("CoreMLExecutionProvider", "it is part of onnxruntime on a Mac"),
    "qnn": Provider(
        "QNNExecutionProvider",
        "pip install 'rrt-edge[qnn]' (Windows or Linux on arm64)",
        "onnxruntime_qnn",
        hardware="it takes Qualcomm's NPUs only",
    ),
}

DEVICES = ("auto", *PROVIDERS)
