"""Writes a safetensors file tensor by tensor, so that no more than one need be in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class TensorFile:
    """A file of tensors of one type whose names and shapes are known before they are; written in any order.

    The format: the header's length in 8 bytes, the header in JSON, the tensors one behind the other.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
        self.dtype, self._offsets = dtype, dict[str, int]()
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in shapes.items():
            end = offset + torch.Size(shape).numel() * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            self._offsets[name], offset = offset, end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._shapes, self._start = {name: tuple(shape) for name, shape in shapes.items()}, 8 + len(encoded)
        self._missing: set[tuple[str, int | None]] = {(name, None) for name in shapes}
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert error is not None or not self._missing, f"not written: {list(self._missing)[:3]}"

    def write(self, name: str, tensor: Tensor, row: int | None = None) -> None:
        """Write a tensor, or one row of it; all its rows are to be written then."""
        shape, offset = self._shapes[name], self._start + self._offsets[name]
        if row is not None:
            if (name, None) in self._missing:
                self._missing.remove((name, None))
                self._missing |= {(name, index) for index in range(shape[0])}
            shape = shape[1:]
            offset += row * torch.Size(shape).numel() * self.dtype.itemsize
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)} is not {shape}"
        self._missing.remove((name, row))
        self._file.seek(offset)
        self._file.write(memoryview(tensor.to(self.dtype).contiguous().flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]
