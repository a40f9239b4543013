"""Read a checkpoint one tensor at a time: a Hugging Face folder as transformers reads it, or a GGUF file."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from rrt_edge.conversion.folder import TEMPLATES, gguf_fields, local_folder, read_fields, weight_files
from rrt_edge.conversion.gguf_file import Blocks, GgufFile
from rrt_edge.conversion.gguf_folder import write_folder
from rrt_edge.conversion.gguf_header import GgufHeader, read_header
from rrt_edge.conversion.naming import HEAD, Names, is_nested, names_of
from rrt_edge.conversion.safetensors_files import SafetensorsFiles
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.families import FAMILIES, family_of, layer_types
from rrt_edge.runtime.errors import BadInputError, one_line
from rrt_edge.runtime.system.options import named, shown

log = logging.getLogger(__name__)
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ROWS = 4096  # compared at once


class Tensors(Protocol):
    """The parameters of a decoder by their names in transformers, read on demand."""

    def __contains__(self, name: str) -> bool: ...

    def tensor(self, name: str, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """A parameter, in memory of its own; of `shape` where one is given."""
        ...

    def close(self) -> None:
        """Let go of memory until the next one is read."""


class Checkpoint:
    """A checkpoint: the config of its decoder, and the decoder's parameters read on demand.

    The decoder is the whole model, or the part that `text_config` describes; `config.tie_word_embeddings` says what the
    weights make true. What else a folder says, and what is left out, gets a line in the log.

    Raises:
        BadInputError: folder, file, config.json or weights are missing or damaged; the message names the file.
    """

    def __init__(self, source: Path | str, trust_remote_code: bool = False) -> None:
        """
        Args:
            source: a folder, the name of one on the hub, or a GGUF file.
            trust_remote_code: run the configuration code that the folder brings, where transformers has none.
        """
        self.gguf = read_header(Path(source)) if Path(source).is_file() else None
        self.source = local_folder(str(source)) if self.gguf is None else self.gguf.path
        if self.gguf is None:
            fields = read_fields(self.source)
            self.whole_config = _read_config(self.source, fields, trust_remote_code)
            self.config = _decoder_config(self.whole_config)
            files, beside = weight_files(self.source, fields)
            if beside is not None:
                log.warning(beside)
            self._files: SafetensorsFiles | GgufFile = SafetensorsFiles(self.source, files)
        else:
            self.config = self.whole_config = _gguf_config(self.gguf)
            self._files = GgufFile(self.gguf, self.config)
        self._names = self._read_names()

    @cached_property
    def folder(self) -> Path:
        """Where config, tokenizer and generation settings lie; of a GGUF file, written from its metadata."""
        if self.gguf is None:
            return self.source
        view = tempfile.mkdtemp(prefix="rrt-edge-")
        weakref.finalize(self, shutil.rmtree, view, ignore_errors=True)  # it lives as long as this
        write_folder(self.gguf, self.config, Path(view))
        return Path(view)

    @property
    def is_recursive(self) -> bool:
        return isinstance(self.config, RecursiveConfig)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The smallest floating type that keeps all the parameters; float32 at most, as models are computed."""
        kinds = {self._files.kept_as(name) for name in self._names.stored.values()}
        return kinds.pop() if len(kinds) == 1 else torch.float32

    @property
    def unplaced(self) -> dict[str, tuple[int, ...]]:
        """The shapes of floating tensors that are no parameter of the model, by what they would be called."""
        names = self._names.unplaced.items()
        return {own: self._files.shape(name) for own, name in names if self._files.is_float(name)}

    def __contains__(self, name: str) -> bool:
        return name in self._names.stored

    def tensor(self, name: str, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Read one parameter, as float32 by default.

        Raises:
            BadInputError: the checkpoint has no such tensor, it has not the `shape` that the config asks for, it is
                quantised, or its file is damaged.
        """
        if name in self._names.computed:
            raise BadInputError(
                f"{self.folder}: {name} is stored in parts; save the model with save_pretrained() again"
            )
        if name not in self._names.stored:
            raise BadInputError(
                f"{self.source}: the weights hold no tensor {name!r}; is this the model config.json says?"
            )
        stored = self._names.stored[name]
        where = self._files.where(stored)
        self._files.kept_as(stored)
        tensor = self._files.read(stored)
        if shape is not None and tuple(tensor.shape) != tuple(shape):
            shape_here, expected = (" x ".join(map(str, sizes)) for sizes in (tensor.shape, shape))
            raise BadInputError(f"{where}: {stored} is {shape_here}, but config.json makes it {expected}")
        is_mapped = self.gguf is None  # the file may be closed
        return tensor.to(dtype, copy=is_mapped and tensor.dtype == dtype)

    def block_type(self, name: str) -> str | None:
        """GGML's type of a matrix, where it is stored in its blocks."""
        stored = self._names.stored.get(name)
        return self._files.block_type(stored) if stored and isinstance(self._files, GgufFile) else None

    def blocks(self, name: str) -> Blocks | None:
        """A matrix in GGML's blocks, where it is stored so."""
        stored = self._names.stored.get(name)
        return self._files.blocks(stored) if stored and isinstance(self._files, GgufFile) else None

    def close(self) -> None:
        """Let go of the files' memory; they are opened again when needed."""
        self._files.close()

    def copy_companions(self, out: Path) -> None:
        """Copy tokenizer, chat template and generation settings to another folder."""
        for name in COMPANIONS:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, out / name)
        for path in (self.folder / TEMPLATES).glob("*.jinja"):
            (out / TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(path, out / TEMPLATES / path.name)

    def _read_names(self) -> Names:
        """Match the stored tensors with the parameters; where the family is not known, none is one."""
        if not self.is_recursive and self.config.model_type not in FAMILIES:
            return Names()
        names = names_of(self.whole_config, self._files.names)
        if names.left_out:
            kind, parts = self.whole_config.model_type, ", ".join(names.left_out)
            log.warning(f"{self.source}: of the {kind} model the decoder is taken; {parts} are left out")
        if self.is_recursive:
            return names
        family = family_of(self.config)
        embedding = f"{family.prefix}.{family.embedding}.weight"
        tied = names.tied
        if tied and HEAD in names.stored and embedding not in names.stored:
            names.stored[embedding] = names.stored[HEAD]
        elif tied and HEAD in names.stored and not self._are_equal(names.stored[embedding], names.stored[HEAD]):
            tied = False
            log.warning(
                f"{self.source}: config.json ties the head to the embedding, but the weights hold two; both count"
            )
        self.config.tie_word_embeddings = tied
        return names

    def _are_equal(self, name: str, other: str) -> bool:
        first, second = self._files.read(name), self._files.read(other)
        if first.shape != second.shape:
            return False
        starts = range(0, len(first), ROWS)
        return all(torch.equal(first[at : at + ROWS].float(), second[at : at + ROWS].float()) for at in starts)


def _read_config(folder: Path, fields: dict[str, Any], trust_remote_code: bool) -> PreTrainedConfig:
    path = folder / "config.json"
    remote = fields["model_type"] not in CONFIG_MAPPING and "AutoConfig" in (fields.get("auto_map") or {})
    if remote and not trust_remote_code:
        raise BadInputError(
            f"{path}: auto_map: its model_type {shown(fields['model_type'])} comes with code of its own, which is "
            "not run unless you trust it (--trust-remote-code)"
        )
    with _config_errors(path, fields):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
        _try_layer(getattr(config, "text_config", None) or config)
    return config


def _gguf_config(header: GgufHeader) -> PreTrainedConfig:
    fields = gguf_fields(header)
    with _config_errors(header.path, fields):
        config = AutoConfig.for_model(**fields)
        _try_layer(config)
    return config


@contextmanager
def _config_errors(path: Path, fields: Mapping[str, Any]) -> Iterator[None]:
    """Errors in a config as one sentence that names the file, and the field where one is at fault."""
    try:
        yield
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from error
    except Exception as error:  # transformers and torch raise many kinds
        reason = f"cannot be read as a {shown(fields['model_type'])} config: {one_line(error) or type(error).__name__}"
        name = _field_at_fault(fields)
        at = "" if name is None else f"{named(name)} {shown(fields[name])}: "
        raise BadInputError(f"{path}: {at}{reason}") from error


def _field_at_fault(fields: Mapping[str, Any]) -> str | None:
    """The field without which a config could be read: errors of transformers and torch do not always name it."""
    for name in fields:
        others = {other: value for other, value in fields.items() if other != name}
        try:
            config = AutoConfig.for_model(**others)
            _try_layer(getattr(config, "text_config", None) or config)
        except Exception:  # as above; without model_type TypeError
            continue
        return name
    return None


def _decoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the decoder in a model; the model's own token ids count where it names any."""
    if not is_nested(config):
        return config
    text = config.text_config
    for field in TOKEN_IDS:
        if getattr(config, field, None) is not None:
            setattr(text, field, getattr(config, field))
    return text


def _try_layer(config: PreTrainedConfig) -> None:
    """Build what a model of a family that is known here is made of, without memory for it."""
    if config.model_type in FAMILIES:
        family = FAMILIES[config.model_type]
        layer_types(config)
        with torch.device("meta"):
            family.decoder_layer(config, 0)
            family.rotary(config)
