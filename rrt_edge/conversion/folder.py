"""What a checkpoint folder says of itself, read without torch and transformers: wrong ones are refused at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rrt_edge.conversion.gguf_config import config_fields
from rrt_edge.conversion.gguf_header import GgufHeader, read_header
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import named, shown

SINGLE, INDEX_SUFFIX = "model.safetensors", ".safetensors.index.json"
INDEX = f"model{INDEX_SUFFIX}"
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
RECURSIVE = "rrt"  # the model type
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "README.md"]
TEMPLATES = "additional_chat_templates"  # the folder of those beside chat_template.jinja
DECODERS, WITH_DECODER = ("ForCausalLM", "Model"), "ForConditionalGeneration"  # how architectures end
BOTH_WAYS = ("paligemma",)  # models whose decoder sees a prompt's later tokens too
LONGEST_NAME = 255  # letters of a file's name
UNFIT = set("/\\:\0")  # letters that lead out of a folder on some system
SIZES = {  # the most that a field may be; each is a whole number from 1 on
    "num_hidden_layers": 10_000, "num_attention_heads": 10_000, "num_key_value_heads": 10_000,
    "hidden_size": 1 << 20, "intermediate_size": 1 << 22, "head_dim": 1 << 16, "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 40, "loops": 10_000, "total_ut_steps": 64, "num_loops": 64,
}  # fmt: skip
KINDS: dict[str, tuple[type, str]] = {
    "model_type": (str, "a text"), "architectures": (list, "a list of names"), "auto_map": (dict, "an object"),
    "text_config": (dict, "an object"), "component_ranks": (dict, "an object"),
}  # fmt: skip


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of config.json.

    Raises:
        BadInputError: there is no such file, it is damaged, or names a model that cannot be made recursive.
    """
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        raise BadInputError(
            f"{folder / 'adapter_config.json'}: this is an adapter alone; merge it into its base model first "
            "(peft: merge_and_unload) and give that"
        )
    if not path.is_file():
        raise BadInputError(f"{folder}: holds no config.json; give the folder of a Hugging Face checkpoint")
    try:
        fields = parse_json(path.read_text("utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(fields, dict) or fields.get("model_type") is None:
        raise BadInputError(f"{path}: names no model_type")
    check_fields(path, fields)
    _refuse_others(path, fields)
    return fields


def check_fields(path: Path, fields: dict[str, Any], inside: str = "") -> None:
    """
    Raises:
        BadInputError: a field of config.json is of another type, or a size that no model has; names it.
    """
    for name, (kind, words) in KINDS.items():
        value = fields.get(name)
        wrong = value is not None and not isinstance(value, kind)
        if wrong or (name == "architectures" and not all(isinstance(entry, str) for entry in value or ())):
            raise BadInputError(f"{path}: {inside}{name} {shown(value)}: must be {words}")
    for name, most in SIZES.items():
        value = fields.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise BadInputError(f"{path}: {inside}{name} {shown(value)}: must be a whole number from 1 to {most}")
    heads, kv_heads = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if heads and kv_heads and heads % kv_heads:
        raise BadInputError(
            f"{path}: {inside}num_key_value_heads {kv_heads} does not divide the {heads} of num_attention_heads"
        )
    if (inner := fields.get("text_config")) is not None:
        if inside:
            raise BadInputError(f"{path}: {inside}text_config: stands inside another text_config")
        check_fields(path, inner, "text_config: ")


def weight_files(folder: Path, fields: dict[str, Any]) -> tuple[list[str], str | None]:
    """The files that hold the weights, as transformers chooses and orders them, and what else the folder says of them.

    config.json may name the file or index (`transformers_weights`); else it is one file, and only where there is none
    the files that an index names. All tensors of these files count, later files before earlier ones.

    Raises:
        BadInputError: weights are missing, or their index is damaged.
    """
    file = fields.get("transformers_weights")
    if file is not None:
        if not is_plain_name(file) or not file.endswith((".safetensors", INDEX_SUFFIX)):
            raise BadInputError(
                f"{folder / 'config.json'}: transformers_weights {shown(file)}: must be a safetensors file or index "
                "beside it"
            )
        if not (folder / file).is_file():
            raise BadInputError(f"{folder / file}: named by config.json (transformers_weights) but missing")
        return (_indexed(folder / file) if file.endswith(INDEX_SUFFIX) else [file]), None
    if (folder / SINGLE).is_file():
        beside = f"{folder}: {SINGLE} is read, as transformers does; {INDEX} beside it names other files"
        return [SINGLE], beside if _is_beside(folder) else None
    if (folder / INDEX).is_file():
        return _indexed(folder / INDEX), None
    raise BadInputError(f"{folder}: holds no {SINGLE}; save the model with save_pretrained() first")


def _indexed(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        weight_map = parse_json(index.read_text("utf-8"))["weight_map"]
        if not isinstance(weight_map, dict):
            raise TypeError("weight_map must be an object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{index}: not a safetensors index") from error
    if not weight_map:
        raise BadInputError(f"{index}: weight_map names no tensor; save the model again")
    for name in weight_map.values():
        if not is_plain_name(name):
            raise BadInputError(f"{index}: weight_map names {shown(name)}, which is no file beside it")
    names = sorted(set(weight_map.values()))
    missing = next((name for name in names if not (index.parent / name).is_file()), None)
    if missing is not None:
        raise BadInputError(f"{index.parent / missing}: named by {index.name} but missing; download it again")
    return names


def _is_beside(folder: Path) -> bool:
    """Whether there is an index that names other files than the single one."""
    if not (folder / INDEX).is_file():
        return False
    try:
        return set(parse_json((folder / INDEX).read_text("utf-8"))["weight_map"].values()) != {SINGLE}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


def is_plain_name(name: Any) -> bool:
    """Whether it is the name of a file, without a folder."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode()) <= LONGEST_NAME
        and name not in (".", "..")
        and not set(name) & UNFIT
    )


def check_folder(source: Path | str) -> dict[str, Any]:
    """The fields of config.json of a folder whose weights are there too, or of a model on the hub.

    Raises:
        BadInputError: there is no such checkpoint, or a part of it is missing or damaged.
    """
    folder = local_folder(str(source))
    fields = read_fields(folder)
    weight_files(folder, fields)
    return fields


def check_source(source: Path | str) -> dict[str, Any]:
    """The fields of config.json of a folder, a model on the hub, or a GGUF file, whose metadata says them.

    Raises:
        BadInputError: there is no such checkpoint, or a part of it is missing or damaged.
    """
    return gguf_fields(read_header(Path(source))) if Path(source).is_file() else check_folder(source)


def gguf_fields(header: GgufHeader) -> dict[str, Any]:
    """The fields of config.json that a GGUF file's metadata stands for.

    Raises:
        BadInputError: it is of a model that is not read here, or says what no model has.
    """
    fields = config_fields(header)
    check_fields(header.path, fields)
    return fields


def check_recursive(checkpoint: Path | str) -> dict[str, Any]:
    """
    Raises:
        BadInputError: it is not a recursive checkpoint.
    """
    fields = check_folder(checkpoint)
    if fields["model_type"] != RECURSIVE:
        raise BadInputError(f"{checkpoint}: not a recursive checkpoint; make one with rrt-edge convert")
    return fields


def is_recursive_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a recursive checkpoint (and may be replaced by another)."""
    try:
        return '"model_type": "rrt"' in (folder / "config.json").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _refuse_others(path: Path, fields: dict[str, Any]) -> None:
    """Raise `BadInputError` for what no family here is: already quantised, experts, no decoder."""
    if quantized := fields.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        method = named(method) if isinstance(method, str) else shown(method)
        raise BadInputError(
            f"{path}: quantization_config: the weights are quantised already ({method}); give the original checkpoint"
        )
    text = fields.get("text_config") or fields
    experts = next((name for name in EXPERTS if isinstance(text.get(name), int) and text[name] > 1), None)
    if experts is not None:
        raise BadInputError(f"{path}: {experts} {shown(text[experts])}: mixtures of experts cannot be made recursive")
    if fields["model_type"] in BOTH_WAYS:
        raise BadInputError(f"{path}: model_type {shown(fields['model_type'])}: its prompt is read in both directions")
    names = fields.get("architectures") or []
    ends = DECODERS if fields.get("text_config") is None else (*DECODERS, WITH_DECODER)
    if fields.get("is_encoder_decoder") or (names and not any(name.endswith(ends) for name in names)):
        field, value = ("architectures", names) if names else ("is_encoder_decoder", True)
        raise BadInputError(f"{path}: {field} {shown(value)}: not a decoder-only language model (a ..ForCausalLM)")


def local_folder(source: str) -> Path:
    """A folder as it is; of a name on the Hugging Face hub, where it was downloaded to."""
    if Path(source).is_dir():
        return Path(source)
    if Path(source).is_file():
        raise BadInputError(f"{source}: is a file; give the folder of a checkpoint")
    if not HUB_ID.fullmatch(source):
        raise BadInputError(f"{source}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=DOWNLOADED))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise BadInputError(f"{source}: no such folder, and not to be had from the Hugging Face hub") from error
