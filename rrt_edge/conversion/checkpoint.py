"""Read a Hugging Face checkpoint folder one tensor at a time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from rrt_edge.conversion.folder import SINGLE, local_folder, read_fields, read_index
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import FAMILIES, layer_types
from rrt_edge.runtime.errors import BadInputError, one_line
from rrt_edge.runtime.system.options import shown

COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


class Checkpoint:
    """A checkpoint folder: its config, and its tensors read on demand from safetensors.

    Raises:
        BadInputError: the folder, config.json or the weights are missing or damaged; the message names the file.
    """

    def __init__(self, folder: Path | str, trust_remote_code: bool = False) -> None:
        """`trust_remote_code`: run the configuration code that the folder brings, where transformers has none."""
        self.folder = local_folder(str(folder))
        self.config = self._read_config(trust_remote_code)
        self._files = self._tensor_files()
        self._open: dict[str, Any] = {}

    @property
    def is_recursive(self) -> bool:
        return isinstance(self.config, RecursiveConfig)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type the weights are stored in, judged by the first tensor."""
        name = next(iter(self._files))
        stored: torch.dtype = self._handle(name).get_slice(name)[:1].dtype
        return stored

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self, prefix: str) -> list[str]:
        """The tensors whose names begin so."""
        return [name for name in self._files if name.startswith(prefix)]

    def tensor(self, name: str, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Read one tensor, as float32 by default.

        Raises:
            BadInputError: the checkpoint has no such tensor, it has not the `shape` that the config asks for, or its
                file is damaged.
        """
        if name not in self._files:
            raise BadInputError(
                f"{self.folder}: the weights hold no tensor {name!r}; is this the model config.json says?"
            )
        try:
            tensor: Tensor = self._handle(name).get_tensor(name)
        except SafetensorError as error:
            raise BadInputError(f"{self.folder / self._files[name]}: damaged weights ({one_line(error)})") from error
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            shape_here, expected = (" x ".join(map(str, sizes)) for sizes in (tensor.shape, shape))
            raise BadInputError(
                f"{self.folder / self._files[name]}: {name} is {shape_here}, but config.json makes it {expected}"
            )
        return tensor.to(dtype, copy=tensor.dtype == dtype)  # a copy: the file may be closed

    def close(self) -> None:
        """Let go of the files' memory; they are opened again when needed."""
        self._open.clear()

    def copy_companions(self, out: Path) -> None:
        """Copy tokenizer, chat template and generation settings to another folder."""
        for name in COMPANIONS:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, out / name)

    def _read_config(self, trust_remote_code: bool) -> PreTrainedConfig:
        path, fields = self.folder / "config.json", read_fields(self.folder)
        remote = fields["model_type"] not in CONFIG_MAPPING and "AutoConfig" in (fields.get("auto_map") or {})
        if remote and not trust_remote_code:
            raise BadInputError(
                f"{path}: auto_map: its model_type {shown(fields['model_type'])} comes with code of its own, which is "
                "not run unless you trust it (--trust-remote-code)"
            )
        try:
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=remote)
            _try_layer(getattr(config, "text_config", None) or config)
            return config
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from error
        except Exception as error:  # transformers and torch raise many kinds
            reason = one_line(error) or type(error).__name__
            raise BadInputError(
                f"{path}: cannot be read as a {shown(fields['model_type'])} config: {reason}"
            ) from error

    def _tensor_files(self) -> dict[str, str]:
        indexed = read_index(self.folder)
        if indexed is not None:
            return indexed
        try:
            with safe_open(self.folder / SINGLE, framework="pt") as file:
                return dict.fromkeys(file.keys(), SINGLE)
        except SafetensorError as error:
            raise BadInputError(
                f"{self.folder / SINGLE}: damaged or cut short ({one_line(error)}); copy it again"
            ) from error

    def _handle(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            except SafetensorError as error:
                message = f"{self.folder / file}: damaged or cut short ({one_line(error)}); copy it again"
                raise BadInputError(message) from error
        return self._open[file]


def _try_layer(config: PreTrainedConfig) -> None:
    """Build what a model of a family that is known here is made of, without memory for it."""
    if config.model_type in FAMILIES:
        family = FAMILIES[config.model_type]
        layer_types(config)
        with torch.device("meta"):
            family.decoder_layer(config, 0)
            family.rotary(config)
