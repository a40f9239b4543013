"""The bundle's weight file, written tensor by tensor, and the ONNX initializers that point into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

ALIGNMENT = 64  # bytes
DATA_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Stored:
    """What a tensor is, without its numbers."""

    shape: tuple[int, ...]
    dtype: type[np.generic]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Weights:
    """The tensors of any number of graphs in one file, of which this counts the bytes of each part; nothing is written.

    `end` is how long the file is.
    """

    def __init__(self) -> None:
        self.end = 0
        self.bytes_by_part: dict[str, int] = {}
        self._tensors: dict[str, TensorProto] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def add(self, name: str, array: NDArray[Any], part: str) -> str:
        """Put a tensor behind the others, unless one of that name is there; returns `name`, for any graph."""
        self.add_made({name: Stored(array.shape, array.dtype.type)}, lambda: [array], part)
        return name

    def add_made(self, tensors: Mapping[str, Stored], make: Callable[[], Sequence[NDArray[Any]]], part: str) -> None:
        """Put tensors behind the others, unless they are there; `make` makes them, where they are to be written."""
        if not any(name in self for name in tensors):
            self._write(tensors, make, {name: self._place(name, tensor, part) for name, tensor in tensors.items()})

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

    def _place(self, name: str, tensor: Stored, part: str) -> int:
        """Where a tensor begins."""
        offset = self.end + -self.end % ALIGNMENT
        self.end = offset + tensor.bytes
        self.bytes_by_part[part] = self.bytes_by_part.get(part, 0) + tensor.bytes
        self._tensors[name] = _external(name, tensor, offset)
        return offset

    def _write(
        self, tensors: Mapping[str, Stored], make: Callable[[], Sequence[NDArray[Any]]], offsets: Mapping[str, int]
    ) -> None:
        """Write what was placed."""


class WeightFile(Weights):
    """Writes them to `model.onnx.data`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = (folder / DATA_FILE).open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def _write(
        self, tensors: Mapping[str, Stored], make: Callable[[], Sequence[NDArray[Any]]], offsets: Mapping[str, int]
    ) -> None:
        for (name, tensor), array in zip(tensors.items(), make(), strict=True):
            assert Stored(array.shape, array.dtype.type) == tensor, name
            self.file.write(b"\0" * (offsets[name] - self.file.tell()))
            self.file.write(np.ascontiguousarray(array).tobytes())


def _read(nodes: Iterable[NodeProto]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _read(attribute.g.node)
    return names


def _external(name: str, stored: Stored, offset: int) -> TensorProto:
    tensor = TensorProto()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(stored.dtype))
    tensor.dims.extend(stored.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(stored.bytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
