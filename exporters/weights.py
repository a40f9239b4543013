"""The bundle's weight file, written tensor by tensor, and the ONNX initializers that point into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

ALIGNMENT = 64  # bytes
DATA_FILE = "model.onnx.data"


class WeightFile:
    """Appends tensors to `model.onnx.data` for any number of graphs, and counts the bytes each part takes."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / DATA_FILE).open("wb")
        self._tensors: dict[str, TensorProto] = {}
        self.bytes_by_part: dict[str, int] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def add(self, name: str, array: NDArray[Any], part: str) -> str:
        """Write a tensor, unless one of that name is there; returns `name`, an initializer for any graph."""
        if name in self:
            return name
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
        offset = self.file.tell()
        data = np.ascontiguousarray(array).tobytes()
        self.file.write(data)
        self.bytes_by_part[part] = self.bytes_by_part.get(part, 0) + len(data)
        self._tensors[name] = _external(name, array, offset, len(data))
        return name

    def alias(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """Another initializer, of another shape, over the bytes of `of`."""
        tensor = TensorProto()
        tensor.CopyFrom(self._tensors[of])
        tensor.name = name
        tensor.ClearField("dims")
        tensor.dims.extend(shape)
        self._tensors[name] = tensor
        return name

    def initializers(self, graph: Sequence[NodeProto]) -> list[TensorProto]:
        """The tensors that a graph's nodes read, those of their subgraphs included."""
        names = _read(graph)
        return [tensor for name, tensor in self._tensors.items() if name in names]


def _read(nodes: Iterable[NodeProto]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _read(attribute.g.node)
    return names


def _external(name: str, array: NDArray[Any], offset: int, length: int) -> TensorProto:
    tensor = TensorProto()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
