"""The bundle's weight file, written tensor by tensor, and the ONNX initializers that point into it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

ALIGNMENT = 64  # bytes
DATA_FILE = "model.onnx.data"


class WeightFile:
    """Appends tensors to `model.onnx.data` and remembers their initializers and the bytes each part takes."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / DATA_FILE).open("wb")
        self.initializers: list[TensorProto] = []
        self.bytes_by_part: dict[str, int] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def add(self, name: str, array: NDArray[Any], part: str) -> str:
        """Write a tensor; returns `name`, now an initializer of the graph."""
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
        offset = self.file.tell()
        data = np.ascontiguousarray(array).tobytes()
        self.file.write(data)
        self.bytes_by_part[part] = self.bytes_by_part.get(part, 0) + len(data)
        self.initializers.append(_external(name, array, offset, len(data)))
        return name

    def once(self, name: str, array: NDArray[Any], part: str) -> str:
        """As `add`, where nothing of that name was written before."""
        return name if any(tensor.name == name for tensor in self.initializers) else self.add(name, array, part)

    def alias(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """Another initializer, of another shape, over the bytes of `of`."""
        original = next(tensor for tensor in self.initializers if tensor.name == of)
        tensor = TensorProto()
        tensor.CopyFrom(original)
        tensor.name = name
        tensor.ClearField("dims")
        tensor.dims.extend(shape)
        self.initializers.append(tensor)
        return name


def _external(name: str, array: NDArray[Any], offset: int, length: int) -> TensorProto:
    tensor = TensorProto()
    tensor.name = name
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
