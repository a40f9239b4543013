"""Tensors of safetensors files, read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rrt_edge.runtime.errors import BadInputError, one_line

KEPT_AS = {  # the type to store a weight in, by safetensors' name of its own
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32,
}  # fmt: skip
WORDS = {  # torch's names of types
    "F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


class SafetensorsFiles:
    """The tensors of some files of a folder, by their stored names; a later file's stand for an earlier one's.

    Raises:
        BadInputError: a file is damaged.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._files = {name: file for file in files for name in self._handle(file).keys()}  # noqa: SIM118

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self._files[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def is_float(self, name: str) -> bool:
        return self._slice(name).get_dtype() in KEPT_AS

    def kept_as(self, name: str) -> torch.dtype:
        """The type to store a weight in: its own, or float32 for float64, which models are not computed in.

        Raises:
            BadInputError: it is of another type: quantised, with scales that are elsewhere, or none at all.
        """
        kind = self._slice(name).get_dtype()
        if kind not in KEPT_AS:
            kinds = ", ".join(WORDS[known] for known in KEPT_AS)
            raise BadInputError(
                f"{self.where(name)}: {name} has numbers of the type {WORDS.get(kind, kind)}; weights must be "
                f"of {kinds}"
            )
        return KEPT_AS[kind]

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, in the memory of the file.

        Raises:
            BadInputError: its file is damaged.
        """
        try:
            tensor: Tensor = self._handle(self._files[name]).get_tensor(name)
        except SafetensorError as error:
            raise BadInputError(f"{self.where(name)}: damaged weights ({one_line(error)})") from error
        return tensor

    def close(self) -> None:
        """Let go of the files' memory; they are opened again when needed."""
        self._open.clear()

    def _slice(self, name: str) -> Any:
        return self._handle(self._files[name]).get_slice(name)

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            except SafetensorError as error:
                message = f"{self.folder / file}: damaged or cut short ({one_line(error)}); copy it again"
                raise BadInputError(message) from error
        return self._open[file]
