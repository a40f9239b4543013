"""What a checkpoint folder says of itself, read without torch and transformers: wrong ones are refused at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import named, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
RECURSIVE = "rrt"  # the model type
LONGEST_NAME = 255  # bytes of a file's name
UNFIT = set("/\\:\0")  # letters that lead out of a folder on some system
SIZES = {  # the most that a field may be; each is a whole number from 1 on
    "num_hidden_layers": 10_000, "num_attention_heads": 10_000, "num_key_value_heads": 10_000,
    "hidden_size": 1 << 20, "intermediate_size": 1 << 22, "head_dim": 1 << 16, "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 40, "loops": 10_000,
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


def read_index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor where the weights lie in several; None where they lie in one.

    Raises:
        BadInputError: weights are missing, or their index is damaged.
    """
    index = folder / INDEX
    if index.is_file():
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
        missing = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
        if missing:
            raise BadInputError(f"{folder / missing[0]}: named by {INDEX} but missing; download it again")
        return weight_map
    if not (folder / SINGLE).is_file():
        raise BadInputError(f"{folder}: holds no {SINGLE}; save the model with save_pretrained() first")
    return None


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
    read_index(folder)
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
    experts = next((name for name in EXPERTS if isinstance(fields.get(name), int) and fields[name] > 1), None)
    if experts is not None:
        raise BadInputError(f"{path}: {experts} {shown(fields[experts])}: mixtures of experts cannot be made recursive")
    names = fields.get("architectures") or []
    if fields.get("is_encoder_decoder") or (names and not any(name.endswith("ForCausalLM") for name in names)):
        field, value = ("architectures", names) if names else ("is_encoder_decoder", True)
        raise BadInputError(f"{path}: {field} {shown(value)}: not a decoder-only language model (a ..ForCausalLM)")


def local_folder(source: str) -> Path:
    """A folder as it is; of a name on the Hugging Face hub, where it was downloaded to."""
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
