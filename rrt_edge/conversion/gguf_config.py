"""The config.json that a GGUF file's metadata stands for: llama.cpp's names and rules in transformers' words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import shown

MODEL_TYPES = {  # by llama.cpp's name of the architecture
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3": "gemma3_text", "phi3": "phi3", "olmo2": "olmo2", "granite": "granite", "gptneox": "gpt_neox",
}  # fmt: skip
NUMBERS = {  # of all architectures
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length", "sliding_window": "attention.sliding_window",
}  # fmt: skip
OWN_NUMBERS = {  # of some
    "gemma2": {"attn_logit_softcapping": "attn_logit_softcapping",
               "final_logit_softcapping": "final_logit_softcapping"},
    "gemma3": {"final_logit_softcapping": "final_logit_softcapping"},
    "granite": {"embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
                "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale"},
}  # fmt: skip
TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
LLAMA3_CONTEXT, LLAMA3_LOW, LLAMA3_HIGH = 8192, 1.0, 4.0  # what llama.cpp takes where it writes the frequencies
ROPE_BASE, GEMMA3_LOCAL_BASE = 10000.0, 10000.0
GEMMA_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the models whose queries are scaled by hidden / heads
Fields = dict[str, Any]


def config_fields(header: GgufHeader) -> Fields:
    """
    Raises:
        BadInputError: the architecture is not known here, or the metadata leaves out or says otherwise what it needs.
    """
    architecture = header.architecture
    if architecture not in MODEL_TYPES:
        known = ", ".join(sorted(MODEL_TYPES))
        raise BadInputError(f"{header.path}: general.architecture {shown(architecture)} is not read; read are {known}")
    fields: Fields = {"model_type": MODEL_TYPES[architecture]}
    for field, key in {**NUMBERS, **OWN_NUMBERS.get(architecture, {})}.items():
        if (value := header.number(key)) is not None:
            fields[field] = value
    needed = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    for field in needed:
        if field not in fields:
            raise BadInputError(f"{header.path}: the metadata has no {architecture}.{NUMBERS[field]}")
    if "token_embd.weight" not in header.tensors:
        raise BadInputError(f"{header.path}: holds no token_embd.weight")
    for field, key in TOKEN_IDS.items():
        value = header.metadata.get(f"tokenizer.ggml.{key}")
        fields[field] = value if isinstance(value, int) else None
    fields["vocab_size"] = header.tensors["token_embd.weight"].shape[0]
    fields["tie_word_embeddings"] = "output.weight" not in header.tensors
    epsilon = "layer_norm_eps" if architecture == "gptneox" else "rms_norm_eps"
    key = "attention.layer_norm_epsilon" if architecture == "gptneox" else "attention.layer_norm_rms_epsilon"
    if (value := header.number(key)) is not None:
        fields[epsilon] = value
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    rotated = header.number("rope.dimension_count")
    if "head_dim" not in fields:
        heads = fields["num_attention_heads"]
        fields["head_dim"] = rotated if architecture == "llama" and rotated else fields["hidden_size"] // heads
    fields["rope_parameters"] = _rope(header, fields)
    if rotated and (rotated != fields["head_dim"] or architecture == "gptneox"):  # there a quarter is the default
        fields["rope_parameters"]["partial_rotary_factor"] = rotated / fields["head_dim"]
    if architecture in _OWN:
        _OWN[architecture](header, fields)
    return {**fields, "architectures": None}


def _rope(header: GgufHeader, fields: Fields) -> Fields:
    """The rotary embedding: its base, and how it is stretched."""
    rope: Fields = {"rope_type": "default", "rope_theta": header.number("rope.freq_base") or ROPE_BASE}
    kind = header.text(f"{header.architecture}.rope.scaling.type") or "none"
    factor, original = header.number("rope.scaling.factor"), header.number("rope.scaling.original_context_length")
    attention = header.number("rope.scaling.attn_factor")
    if LONG in header.tensors and SHORT in header.tensors:
        rope |= {"rope_type": "longrope", "long_factor": _vector(header, LONG).tolist()}
        rope |= {"short_factor": _vector(header, SHORT).tolist(), "original_max_position_embeddings": original}
        if original is None:
            raise BadInputError(f"{header.path}: the metadata has no rope.scaling.original_context_length")
        fields["original_max_position_embeddings"] = original
        return rope if attention is None else rope | {"attention_factor": attention}
    if FREQUENCIES in header.tensors:
        return rope | _llama3(header, fields, rope["rope_theta"], original or LLAMA3_CONTEXT)
    if kind == "none" or factor in (None, 0, 1):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        stretched = 0.1 * math.log(factor) + 1.0
        rope |= {"rope_type": "yarn", "factor": factor, "attention_factor": (attention or 1.0) * stretched}
        return rope | {"original_max_position_embeddings": original or fields["max_position_embeddings"]}
    raise BadInputError(f"{header.path}: {header.architecture}.rope.scaling.type {shown(kind)} is not read")


def _llama3(header: GgufHeader, fields: Fields, base: float, original: int) -> Fields:
    """Llama 3's stretching, of which the file holds what each frequency is divided by."""
    divisors = _vector(header, FREQUENCIES)
    factor = float(divisors.max())
    size = 2 * len(divisors)
    lengths = 2 * np.pi * base ** (np.arange(0, size, 2) / size)  # positions of a full turn
    smooth = (original / lengths - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)
    expected = 1 / np.clip((1 - smooth) / factor + smooth, 1 / factor, 1)
    if factor == 1:
        return {}
    if not np.allclose(expected, divisors, rtol=1e-3):
        raise BadInputError(f"{header.path}: {FREQUENCIES} is not stretched as Llama 3's are, which alone is read")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": original,
    }


def _vector(header: GgufHeader, name: str) -> NDArray[np.float32]:
    if header.tensors[name].type != "F32":
        raise BadInputError(f"{header.path}: {name} is stored as {header.tensors[name].type}, not F32")
    return header.rows(name).view(np.float32)


def _has(header: GgufHeader, part: str) -> bool:
    return f"blk.0.{part}.bias" in header.tensors


def _llama(header: GgufHeader, fields: Fields) -> None:
    fields |= {"attention_bias": _has(header, "attn_q"), "mlp_bias": _has(header, "ffn_up")}
    fields.pop("sliding_window", None)


def _qwen(header: GgufHeader, fields: Fields) -> None:
    fields |= {"attention_bias": _has(header, "attn_q"), "use_sliding_window": False}
    fields.pop("sliding_window", None)


def _scaled_queries(header: GgufHeader, fields: Fields) -> None:
    """What Gemma's queries are divided by the root of, which llama.cpp knows by the number of layers."""
    largest = fields["num_hidden_layers"] == GEMMA_LARGEST[header.architecture]
    per_head = fields["hidden_size"] // fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = per_head if largest else fields["head_dim"]


def _gemma3(header: GgufHeader, fields: Fields) -> None:
    """Its local layers turn by another base, and are not stretched."""
    _scaled_queries(header, fields)
    local = {"rope_type": "default", "rope_theta": header.number("rope.freq_base_swa") or GEMMA3_LOCAL_BASE}
    fields["rope_parameters"] = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    if pattern := header.number("attention.sliding_window_pattern"):
        fields["sliding_window_pattern"] = int(pattern)


def _gptneox(header: GgufHeader, fields: Fields) -> None:
    fields |= {"use_parallel_residual": bool(header.metadata.get("gptneox.use_parallel_residual", True))}
    fields["attention_bias"] = _has(header, "attn_qkv")
    fields.pop("head_dim"), fields.pop("num_key_value_heads")


_OWN: dict[str, Callable[[GgufHeader, Fields], None]] = {
    "llama": _llama, "granite": _llama, "qwen2": _qwen, "qwen3": _qwen, "gemma2": _scaled_queries, "gemma3": _gemma3,
    "gptneox": _gptneox,
}  # fmt: skip
