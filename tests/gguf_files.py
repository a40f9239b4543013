"""Small GGUF files of random models, written as llama.cpp's converter writes them, with the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import PreTrainedModel

OUTER = {
    "model.embed_tokens": "token_embd", "gpt_neox.embed_in": "token_embd", "model.norm": "output_norm",
    "gpt_neox.final_layer_norm": "output_norm", "lm_head": "output",
}  # fmt: skip
INNER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
SANDWICH = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
ARCHITECTURES = {"gemma3_text": "gemma3", "gpt_neox": "gptneox", "mistral": "llama"}


def write_gguf(model: PreTrainedModel, path: Path, kind: str = "F32", pieces: bool = False, **metadata: Any) -> None:
    """Write a model whose matrices are of one of GGML's types (as far as their rows come in whole blocks).

    Its tokenizer is byte-level, or SentencePiece's with `pieces`.
    """
    config, family = model.config, model.config.model_type
    architecture = ARCHITECTURES.get(family, family)
    writer = GGUFWriter(str(path), architecture)
    _write_sizes(writer, config, architecture)
    (write_pieces if pieces else write_tokenizer)(writer, config.vocab_size)
    for key, value in metadata.items():
        writer.add_key_value(key, value, _kind_of(value))
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        start, end = name.rsplit(".", 1)
        own = OUTER.get(start) or _in_layer(start, family)
        weights = tensor.detach().float()
        if family.startswith("gemma") and name.endswith("norm.weight"):
            weights = weights + 1
        weights = _turned(own, weights, config, architecture)
        _add(writer, f"{own}.{end}", weights.numpy(), kind)
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        _add(writer, "rope_freqs.weight", _llama3(model), "F32")
    if rope.get("rope_type") == "longrope":
        for name in ("long", "short"):
            _add(writer, f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], np.float32), "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(writer: GGUFWriter, size: int) -> None:
    """A byte-level tokenizer: two special tokens, the bytes, and pairs of letters."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [a + b for a in letters for b in letters][: size - 258]
    tokens = ["<pad>", "</s>", *bytes_to_unicode().values(), *pairs]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{at}]" for at in range(len(tokens), size)])
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2) + [5] * (size - len(tokens)))
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}")


def write_pieces(writer: GGUFWriter, size: int) -> None:
    """Pieces `a`, `b`, `ab` and such with a space before them; bytes; the higher a score, the earlier it is joined."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    own = ["\u2581", "a", "b", "c", "ab", "\u2581ab", "bc", "\u2581\u2581"]
    unused = [f"[{at}]" for at in range(size - len(tokens) - len(own))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *own, *unused])
    writer.add_token_scores([0.0] * len(tokens) + [-float(at) for at in range(len(own))] + [-1000.0] * len(unused))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (size - len(tokens)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _in_layer(start: str, family: str) -> str:
    layer, _, inner = start.partition(".layers.")[2].partition(".")
    names = {**INNER, **(SANDWICH if family in ("gemma2", "gemma3_text", "olmo2") else {})}
    return f"blk.{layer}.{names[inner]}"


def _turned(own: str, weights: torch.Tensor, config: Any, architecture: str) -> torch.Tensor:
    """As llama.cpp's converter orders rows: the two halves of a head take turns; GPT-NeoX's projections stand apart."""
    heads = config.num_attention_heads
    if architecture in ("llama", "granite") and (".attn_q." in f"{own}." or ".attn_k." in f"{own}."):
        count = heads if ".attn_q." in f"{own}." else config.num_key_value_heads
        halves = weights.reshape(count, 2, weights.shape[0] // count // 2, *weights.shape[1:])
        return halves.swapaxes(1, 2).reshape(weights.shape)
    if architecture == "gptneox" and ".attn_qkv" in own:
        by_head = weights.reshape(heads, 3, -1, *weights.shape[1:])
        return torch.cat([by_head[:, part].reshape(-1, *weights.shape[1:]) for part in range(3)])
    return weights


def _add(writer: GGUFWriter, name: str, array: np.ndarray, kind: str) -> None:
    number = GGMLQuantizationType[kind]
    if array.ndim < 2 or kind == "F32" or array.shape[-1] % GGML_QUANT_SIZES[number][0]:
        writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
    elif kind == "F16":
        writer.add_tensor(name, array.astype(np.float16))
    elif kind.endswith("K"):
        writer.add_tensor(name, _of_k(array, number), raw_dtype=number)
    else:
        writer.add_tensor(name, quantize(np.ascontiguousarray(array), number), raw_dtype=number)


def _of_k(array: np.ndarray, number: GGMLQuantizationType) -> np.ndarray:
    """Blocks of a K type with any codes and small scales: the package reads them but does not write them."""
    numbers, size = GGML_QUANT_SIZES[number]
    rng = np.random.default_rng(len(array))
    blocks = rng.integers(0, 256, (*array.shape[:-1], array.shape[-1] // numbers, size), np.uint8)
    for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[number.name]:
        blocks[..., at : at + 2] = np.array([1e-3], np.float16).view(np.uint8)
    rows = blocks.reshape(*array.shape[:-1], -1)
    assert np.isfinite(dequantize(rows, number)).all()
    return rows


def _llama3(model: PreTrainedModel) -> np.ndarray:
    """What Llama 3's frequencies are divided by."""
    config = model.config
    size = config.head_dim
    plain = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    return (plain / model.model.rotary_emb.inv_freq).numpy()


def _kind_of(value: Any) -> Any:
    return GGUFValueType.get_type(value)


def _write_sizes(writer: GGUFWriter, config: Any, architecture: str) -> None:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    if architecture == "gptneox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(size)
        writer.add_value_length(size)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1)))
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_string(f"{architecture}.rope.scaling.type", rope["rope_type"])
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture in ("gemma2", "gemma3", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
