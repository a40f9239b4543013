"""Read a Hugging Face checkpoint folder one tensor at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.runtime.errors import BadInputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
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
        self.folder = _local_folder(str(folder))
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
            raise BadInputError(f"{self.folder / self._files[name]}: damaged weights ({error})") from error
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
        path = self.folder / "config.json"
        if not path.is_file() and (self.folder / "adapter_config.json").is_file():
            raise BadInputError(
                f"{self.folder / 'adapter_config.json'}: this is an adapter alone; merge it into its base model first "
                "(peft: merge_and_unload) and give that"
            )
        if not path.is_file():
            raise BadInputError(f"{self.folder}: holds no config.json; give the folder of a Hugging Face checkpoint")
        try:
            fields = json.loads(path.read_text("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInputError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(fields, dict) or "model_type" not in fields:
            raise BadInputError(f"{path}: names no model_type")
        _refuse(path, fields)
        remote = fields["model_type"] not in CONFIG_MAPPING and "AutoConfig" in fields.get("auto_map", {})
        if remote and not trust_remote_code:
            raise BadInputError(
                f"{path}: auto_map: its model_type {fields['model_type']!r} comes with code of its own, which is not "
                "run unless you trust it (--trust-remote-code)"
            )
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=remote)
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from error
        except (ValueError, TypeError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(f"{path}: cannot be read as a {fields['model_type']!r} config: {reason}") from error

    def _tensor_files(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise BadInputError(f"{index}: not a safetensors index") from error
            missing = sorted({name for name in weight_map.values() if not (self.folder / name).is_file()})
            if missing:
                raise BadInputError(f"{self.folder / missing[0]}: named by {INDEX} but missing; download it again")
            return dict(weight_map)
        if not (self.folder / SINGLE).is_file():
            raise BadInputError(f"{self.folder}: holds no {SINGLE}; save the model with save_pretrained() first")
        try:
            with safe_open(self.folder / SINGLE, framework="pt") as file:
                return dict.fromkeys(file.keys(), SINGLE)
        except SafetensorError as error:
            raise BadInputError(f"{self.folder / SINGLE}: damaged or cut short ({error}); copy it again") from error

    def _handle(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            except SafetensorError as error:
                message = f"{self.folder / file}: damaged or cut short ({error}); copy it again"
                raise BadInputError(message) from error
        return self._open[file]


def _refuse(path: Path, fields: dict[str, Any]) -> None:
    """Raise `BadInputError` for what no family here is: already quantised, experts, no decoder."""
    if quantized := fields.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        raise BadInputError(
            f"{path}: quantization_config: the weights are quantised already ({method}); give the original checkpoint"
        )
    experts = next((name for name in EXPERTS if isinstance(fields.get(name), int) and fields[name] > 1), None)
    if experts is not None:
        raise BadInputError(f"{path}: {experts} {fields[experts]}: mixtures of experts cannot be made recursive")
    named = fields.get("architectures") or []
    if fields.get("is_encoder_decoder") or (named and not any(name.endswith("ForCausalLM") for name in named)):
        field, value = ("architectures", named) if named else ("is_encoder_decoder", True)
        raise BadInputError(f"{path}: {field} {value}: not a decoder-only language model (a ..ForCausalLM)")


def _local_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(source):
        raise BadInputError(f"{source}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise BadInputError(f"{source}: no such folder, and not to be had from the Hugging Face hub") from error
