"""Tensors of safetensors files, read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rrt_edge.runtime.errors import BadInputError, one_line

KEPT_AS = {  # the type that keeps what a stored one holds, as far as it is a weight's
    "F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.bfloat16, "F8_E5M2": torch.bfloat16,
}  # fmt: skip
SCALES = ("_scale", "_scale_inv")  # what names of scales beside quantised weights end in


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
        """The type to store a weight in.

        Raises:
            BadInputError: it is not stored as floating point numbers, or these have scales of their own.
        """
        kind = self._slice(name).get_dtype()
        scale = next((f"{name}{end}" for end in SCALES if f"{name}{end}" in self._files), None)
        if scale is not None and kind.startswith("F8"):
            kind += f" with {scale}"
        if kind not in KEPT_AS:
            raise BadInputError(
                f"{self.where(name)}: {name} is stored as {kind}, which is quantised; give the original checkpoint"
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
