"""What a GGUF file says of itself: its metadata, and where its tensors lie. Read without torch and transformers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import named, shown

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
TEXT, ARRAY = 8, 9
TYPES = {  # by GGML's number: name, numbers of a block, its bytes
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
}  # fmt: skip
MOST_DIMENSIONS, MOST_NESTED = 4, 4


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies; `shape` as torch counts, the longest step first. `number` is GGML's of its type."""

    name: str
    shape: tuple[int, ...]
    number: int
    offset: int

    @property
    def type(self) -> str:
        return TYPES[self.number][0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: all numbers that share the first dimensions."""
        _, numbers, size = TYPES[self.number]
        return self.shape[-1] // numbers * size


@dataclass(frozen=True)
class GgufHeader:
    """A file's metadata and tensors by name; of an array of texts the metadata holds the length alone."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def number(self, key: str) -> Any:
        """A number that the metadata says under the architecture's name, or None.

        Raises:
            BadInputError: it is no number, or one that is not finite.
        """
        full = f"{self.architecture}.{key}"
        value = self.metadata.get(full)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]  # for each layer, and all the same
        if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
            raise BadInputError(f"{self.path}: {named(full)} {shown(value)}: must be one number")
        return value

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise BadInputError(f"{self.path}: {named(key)} {shown(value)}: must be a text")
        return value

    def rows(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, [.., row_bytes], in the memory of the file."""
        tensor = self.tensors[name]
        shape = (*tensor.shape[:-1], tensor.row_bytes)
        return np.memmap(self.path, np.uint8, "r", tensor.offset, shape)


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """
    Raises:
        BadInputError: the file is no GGUF, of another version, cut short or damaged.
    """
    if not is_gguf(path):
        raise BadInputError(f"{path}: is a file but no GGUF; give the folder of a checkpoint, or a .gguf file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, ValueError) as error:
        raise BadInputError(f"{path}: damaged or cut short; copy it again") from error


class _Reader:
    """Reads a file from the front; what lies beyond its end is an error of `struct` or an `IndexError`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, len(MAGIC)

    def header(self) -> GgufHeader:
        version = self.value(4)
        if version not in VERSIONS:
            raise BadInputError(f"{self.path}: GGUF version {version}; supported: {', '.join(map(str, VERSIONS))}")
        count, pairs = self.value(10), self.value(10)
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.text()
            metadata[key] = self.value(self.value(4))
        if metadata.get("split.count", 0) > 1:
            raise BadInputError(f"{self.path}: is one part of a model in several files; merge them (llama-gguf-split)")
        tensors = [self.tensor() for _ in range(count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        start = -(-self.at // alignment) * alignment
        placed = {
            tensor.name: GgufTensor(tensor.name, tensor.shape, tensor.number, start + tensor.offset)
            for tensor in tensors
        }
        for tensor in placed.values():
            end = tensor.offset + math.prod(tensor.shape[:-1]) * tensor.row_bytes
            if end > len(self.data):
                raise BadInputError(f"{self.path}: {named(tensor.name)}: the file is cut short; copy it again")
        return GgufHeader(self.path, metadata, placed)

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of a type; of an array of texts its length."""
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self.array(depth)
        if kind not in NUMBERS:
            raise IndexError(kind)
        return self.numbers(NUMBERS[kind], 1)[0]

    def array(self, depth: int) -> Any:
        kind, count = self.value(4), self.value(10)
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind], count)
        if count > len(self.data) or depth > MOST_NESTED:
            raise IndexError(count)
        if kind == TEXT:
            self.skip_texts(count)
            return count
        return [self.value(kind, depth + 1) for _ in range(count)]

    def numbers(self, kind: str, count: int) -> list[Any]:
        dtype = np.dtype(kind)
        start = self.skip(count * dtype.itemsize)
        return list(np.frombuffer(self.data[start : self.at], dtype).tolist())

    def text(self) -> str:
        length = self.value(10)
        start = self.skip(length)
        return self.data[start : self.at].decode()

    def skip(self, length: int) -> int:
        """Go on; returns where it was."""
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise IndexError(self.at)
        return start

    def skip_texts(self, count: int) -> None:
        """Go on behind an array of texts, of which a vocabulary has hundreds of thousands."""
        at, end = self.at, len(self.data)
        for _ in range(count):
            at += 8 + int.from_bytes(self.data[at : at + 8], "little")
            if at > end:
                raise IndexError(at)
        self.at = at

    def tensor(self) -> GgufTensor:
        name, dimensions = self.text(), self.value(4)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise IndexError(dimensions)
        shape = tuple(reversed([self.value(10) for _ in range(dimensions)]))
        number, offset = self.value(4), self.value(10)
        if number not in TYPES:
            known = ", ".join(kind for kind, _, _ in TYPES.values())
            raise BadInputError(
                f"{self.path}: {named(name)} is of GGML's type {number}, which is not read; read are {known}"
            )
        if shape[-1] % TYPES[number][1]:
            raise IndexError(shape)
        return GgufTensor(name, shape, number, offset)
